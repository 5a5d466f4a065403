//! Payload on its way to its files: all of it in one buffer, in the order it arrived, and a chain of pieces per file.
//!
//! A buffer per file would cost memory for each file that there ever was, and an allocation for each that has something.

use std::io::IoSlice;

/// Behind the last piece.
const NONE: u32 = u32::MAX;
/// Room that the buffer keeps, in bytes.
const KEPT_CAPACITY: usize = 2 << 20;
/// So many bytes of pieces are kept room for; with messages of 64 bytes it is this many to the above.
const KEPT_PIECES: usize = KEPT_CAPACITY / 64;
/// Bytes that a piece costs beside those that it holds.
const PIECE_COST: usize = size_of::<Piece>();
/// Pieces that are written at a time; IOV_MAX is 1024 (writev(2)).
const AT_ONCE: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    len: u32,
    next: u32,
}

/// What is pending for one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    first: u32,
    last: u32,
}

impl Chain {
    pub(crate) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(crate) fn is_empty(self) -> bool {
        self.first == NONE
    }
}

/// The buffer.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes that are in a chain.
    held: usize,
}

impl Segments {
    /// Memory that it takes, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len() + self.pieces.len() * PIECE_COST
    }

    /// Adds bytes, which are not empty, to a chain. The caller sees to it that [`Segments::cost`] stays below 4 GiB.
    #[inline]
    pub(crate) fn push(&mut self, chain: &mut Chain, bytes: &[u8]) {
        let (start, index) = (self.bytes.len() as u32, self.pieces.len() as u32);
        self.bytes.extend_from_slice(bytes);
        self.held += bytes.len();
        if chain.last == index.wrapping_sub(1) && !chain.is_empty() {
            // What was added last is this file's, too.
            self.pieces[chain.last as usize].len += bytes.len() as u32;
            return;
        }
        self.pieces.push(Piece { start, len: bytes.len() as u32, next: NONE });
        if chain.is_empty() {
            chain.first = index;
        } else {
            self.pieces[chain.last as usize].next = index;
        }
        chain.last = index;
    }

    /// Hands the chain's first bytes to `write`, which returns how many it took of them, until none are left.
    ///
    /// # Errors
    ///
    /// Those of `write`; the chain then has what was not taken.
    pub(crate) fn drain<E>(
        &mut self,
        chain: &mut Chain,
        mut write: impl FnMut(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<(), E> {
        while chain.first != chain.last {
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            let (mut count, mut at) = (0, chain.first);
            while at != NONE && count < AT_ONCE {
                let piece = self.pieces[at as usize];
                slices[count] = IoSlice::new(self.of(piece));
                (count, at) = (count + 1, piece.next);
            }
            let taken = write(&slices[..count])?;
            self.take(chain, taken);
        }
        // Mostly there is no more than one.
        while !chain.is_empty() {
            let taken = write(&[IoSlice::new(self.of(self.pieces[chain.first as usize]))])?;
            self.take(chain, taken);
        }
        Ok(())
    }

    fn of(&self, piece: Piece) -> &[u8] {
        &self.bytes[piece.start as usize..][..piece.len as usize]
    }

    /// Takes the first bytes off a chain.
    fn take(&mut self, chain: &mut Chain, mut len: usize) {
        self.held -= len;
        while len > 0 {
            let piece = &mut self.pieces[chain.first as usize];
            let part = len.min(piece.len as usize);
            piece.start += part as u32;
            piece.len -= part as u32;
            len -= part;
            if piece.len == 0 {
                chain.first = piece.next;
            }
        }
        if chain.is_empty() {
            *chain = Chain::EMPTY;
        }
    }

    /// Forgets what a chain has; returns how many bytes that was.
    pub(crate) fn discard(&mut self, chain: &mut Chain) -> usize {
        let (mut len, mut at) = (0, chain.first);
        while at != NONE {
            let piece = self.pieces[at as usize];
            (len, at) = (len + piece.len as usize, piece.next);
        }
        self.held -= len;
        *chain = Chain::EMPTY;
        len
    }

    /// Gives memory back where nothing is pending.
    pub(crate) fn clear_if_empty(&mut self) {
        if self.held == 0 {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_CAPACITY);
            self.pieces.clear();
            self.pieces.shrink_to(KEPT_PIECES);
        }
    }

    /// Gives back the memory of what has been taken; `chains` are all that have something.
    pub(crate) fn compact<'a>(&mut self, chains: impl Iterator<Item = &'a mut Chain>) {
        let mut compact = Self::default();
        for chain in chains {
            let (mut moved, mut at) = (Chain::EMPTY, chain.first);
            while at != NONE {
                let piece = self.pieces[at as usize];
                compact.push(&mut moved, self.of(piece));
                at = piece.next;
            }
            *chain = moved;
        }
        *self = compact;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken at a time, every chain gives its own bytes in their order.
        #[test]
        fn chains_keep_their_bytes(
            pushes in prop::collection::vec((0..3usize, prop::collection::vec(any::<u8>(), 1..20)), 0..600),
            takes in prop::collection::vec(1..40usize, 1..20),
            fail_after in 0..20usize,
        ) {
            let (mut segments, mut chains) = (Segments::default(), [Chain::EMPTY; 3]);
            let (mut expected, mut got): ([Vec<u8>; 3], [Vec<u8>; 3]) = Default::default();
            for (chain, bytes) in &pushes {
                segments.push(&mut chains[*chain], bytes);
                expected[*chain].extend(bytes);
            }
            let mut takes = takes.iter().cycle();
            for round in 0..2 {
                for (chain, got) in chains.iter_mut().zip(&mut got) {
                    let mut calls = 0;
                    let result = segments.drain(chain, |slices| {
                        calls += 1;
                        if round == 0 && calls > fail_after {
                            return Err(());
                        }
                        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                        let taken = all.len().min(*takes.next().unwrap());
                        got.extend(&all[..taken]);
                        Ok(taken)
                    });
                    prop_assert_eq!(result.is_ok(), chain.is_empty());
                }
                segments.compact(chains.iter_mut());
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(segments.held, 0);
            segments.clear_if_empty();
            prop_assert_eq!(segments.cost(), 0);
        }
    }

    #[test]
    fn what_is_discarded_is_counted() {
        let (mut segments, mut one, mut two) = (Segments::default(), Chain::EMPTY, Chain::EMPTY);
        for _ in 0..3 {
            segments.push(&mut one, b"abc");
            segments.push(&mut two, b"d");
        }
        assert_eq!(segments.discard(&mut one), 9);
        assert!(one.is_empty());
        segments.compact([&mut two].into_iter());
        let mut rest = Vec::new();
        let all = segments.drain(&mut two, |slices| {
            rest.extend(slices.iter().flat_map(|slice| slice.to_vec()));
            Ok::<_, ()>(slices.iter().map(|slice| slice.len()).sum())
        });
        assert_eq!((all, &*rest), (Ok(()), &b"ddd"[..]));
    }
}

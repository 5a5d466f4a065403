//! What comes with a message beside its bytes: a descriptor, and the process that the kernel says has sent it.

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::sender::Sender;

/// Words of ancillary data: credentials, behind them one descriptor.
const CONTROL_WORDS: usize = 7;

/// Room for them, aligned as headers of ancillary data are.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Control([u64; CONTROL_WORDS]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; CONTROL_WORDS]);

    /// Has the kernel write into it what comes with the message of a header.
    pub(super) fn use_for(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.0.as_mut_ptr().cast();
        // Not the padding behind the descriptor, or the kernel would put a second one there.
        // SAFETY: both only compute.
        let len = unsafe {
            libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) + libc::CMSG_LEN(size_of::<libc::c_int>() as u32)
        };
        header.msg_controllen = len as usize;
    }
}

/// What came with a message.
#[derive(Debug, Default)]
pub(super) struct Came {
    /// The first descriptor.
    pub(super) fd: Option<OwnedFd>,
    /// The process that has sent it (`SO_PASSCRED`, unix(7)).
    pub(super) sender: Option<Sender>,
}

impl Came {
    /// What came with the message of a header that recvmsg(2) has filled in, to be asked once.
    pub(super) fn with(header: &libc::msghdr) -> Self {
        let mut came = Self::default();
        // SAFETY: the kernel has filled the buffer in, as far as the length says; each piece is read only as far as its own
        // length says, and descriptors are taken over once.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(piece) = at.as_ref() {
                let len = piece.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(at);
                match (piece.cmsg_level, piece.cmsg_type) {
                    (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                        for index in 0..len / size_of::<libc::c_int>() {
                            let fd = OwnedFd::from_raw_fd(data.cast::<libc::c_int>().add(index).read_unaligned());
                            came.fd.get_or_insert(fd);
                        }
                    }
                    (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if len >= size_of::<libc::ucred>() => {
                        came.sender = Some(data.cast::<libc::ucred>().read_unaligned().into());
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
        came
    }
}

/// recvmsg(2), without blocking: how many bytes were received, and what came with them.
///
/// Not rustix's: there a process id may not be 0, as that of a sender is that has none here.
pub(super) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> Result<(usize, Came), Errno> {
    let socket: BorrowedFd<'_> = socket.as_fd();
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a plain C struct for which all zeroes is a value: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    let mut control = Control::EMPTY;
    control.use_for(&mut header);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: everything that the header leads to outlives the call and has the length that it says.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    match usize::try_from(received) {
        Ok(len) => Ok((len, Came::with(&header))),
        Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

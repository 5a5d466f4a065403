//! One send or receive by io_uring(7), which is no call of a function of libc's.

use std::ffi::c_int;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Release},
};

use rustix::io_uring::{
    IORING_OFF_CQ_RING, IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, io_uring_cqe, io_uring_enter,
    io_uring_params, io_uring_setup, io_uring_sqe,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Bytes of each of the rings' mappings: more than rings of one entry need.
const RING_LEN: usize = 4096;

/// `IORING_OP_SEND`.
pub fn send(fd: c_int, data: &mut [u8]) -> isize {
    submit(IoringOp::Send, fd, data)
}

/// `IORING_OP_RECV`.
pub fn receive(fd: c_int, data: &mut [u8]) -> isize {
    submit(IoringOp::Recv, fd, data)
}

/// The operation's result; negative as well where the kernel has no io_uring, or none for us.
fn submit(operation: IoringOp, fd: c_int, data: &mut [u8]) -> isize {
    let mut params = io_uring_params::default();
    // SAFETY: the kernel maps rings of its own; the entry's memory is `data`'s, and the operation has ended when this
    // function goes on.
    unsafe {
        let Ok(ring) = io_uring_setup(1, &mut params) else { return -1 };
        let map = |offset| {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), RING_LEN, access, MapFlags::SHARED, ring.as_fd(), offset).expect("a ring")
        };
        let (submissions, completions) = (map(IORING_OFF_SQ_RING), map(IORING_OFF_CQ_RING));
        let entry = map(IORING_OFF_SQES).cast::<io_uring_sqe>();
        let word = |ring: *mut std::ffi::c_void, offset: u32| &*ring.byte_add(offset as usize).cast::<AtomicU32>();
        let mut request = io_uring_sqe { opcode: operation, fd: fd.as_raw_fd(), ..io_uring_sqe::default() };
        request.addr_or_splice_off_in.addr = rustix::io_uring::io_uring_ptr::new(data.as_mut_ptr().cast());
        request.len.len = data.len() as u32;
        entry.write(request);
        word(submissions, params.sq_off.array).store(0, Release);
        word(submissions, params.sq_off.tail).store(1, Release);
        let _ = io_uring_enter(ring.as_fd(), 1, 1, IoringEnterFlags::GETEVENTS);
        if word(completions, params.cq_off.tail).load(Acquire) == 0 {
            return -1;
        }
        (*completions.byte_add(params.cq_off.cqes as usize).cast::<io_uring_cqe>()).res as isize
    }
}

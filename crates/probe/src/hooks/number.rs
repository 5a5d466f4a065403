//! Numbers of the system calls that have a hook, as syscall(2) takes them (linux/arch/x86/entry/syscalls/syscall_64.tbl).

use core::ffi::c_long;

macro_rules! numbers {
    ($($name:ident = $number:literal,)+) => { $(pub(super) const $name: c_long = $number;)+ };
}

#[cfg(target_arch = "x86_64")]
numbers! {
    READ = 0,
    WRITE = 1,
    CLOSE = 3,
    READV = 19,
    WRITEV = 20,
    DUP = 32,
    DUP2 = 33,
    SENDFILE = 40,
    SOCKET = 41,
    CONNECT = 42,
    ACCEPT = 43,
    SENDTO = 44,
    RECVFROM = 45,
    SENDMSG = 46,
    RECVMSG = 47,
    SHUTDOWN = 48,
    BIND = 49,
    LISTEN = 50,
    SOCKETPAIR = 53,
    CLONE = 56,
    VFORK = 58,
    EXECVE = 59,
    FCNTL = 72,
    PIVOT_ROOT = 155,
    PRCTL = 157,
    SETRLIMIT = 160,
    CHROOT = 161,
    EXIT_GROUP = 231,
    SPLICE = 275,
    ACCEPT4 = 288,
    DUP3 = 292,
    RECVMMSG = 299,
    PRLIMIT64 = 302,
    SENDMMSG = 307,
    SETNS = 308,
    SECCOMP = 317,
    EXECVEAT = 322,
    PREADV2 = 327,
    PWRITEV2 = 328,
    CLONE3 = 435,
    CLOSE_RANGE = 436,
    PIDFD_GETFD = 438,
}

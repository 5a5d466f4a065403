//! New processes, other programs, and the limits that a program puts on itself.

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};

use super::entry::hooks;
use crate::life::exec::{self, Call};
use crate::life::strict;
use crate::observe::{calls, notices};
use crate::process::{self, clock, guest};
use crate::sys::libc::own_environment;
use crate::transport;

/// The result of a function that has none.
type Nothing = ();

/// Makes a child that shares our memory until it executes a program.
fn spawn(libc: impl FnOnce() -> c_int) -> c_int {
    if !process::is_started() {
        return libc();
    }
    guest::begin(0);
    let result = libc();
    guest::end(process::own_pid());
    exec::give_back();
    result
}

/// Turns into another program.
unsafe fn execute(call: &Call<'_>, envp: *const *const c_char, libc: impl Fn(*const *const c_char) -> c_int) -> c_int {
    let leave_and_execute = |envp| {
        transport::leave();
        libc(envp)
    };
    // SAFETY: the caller's promise: the arguments are the program's own.
    unsafe { exec::execute(call, envp, leave_and_execute) }
}

/// The program has set limits of a process, perhaps its own.
fn limits_set(result: c_int) -> c_int {
    if result == 0 {
        calls::limits_changed();
    }
    result
}

/// The program makes a call that gives it another root directory.
fn change_root(libc: impl FnOnce() -> c_int) -> c_int {
    calls::before_another_root();
    let result = libc();
    if result == 0 {
        exec::root_changed();
    }
    result
}

hooks! {
    fn fork() -> c_int |libc| {
        calls::before_fork();
        let pid = libc();
        if pid == 0 {
            process::notice_fork();
        }
        pid
    }

    fn execve[EXECVE](path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        execute(&Call::of_path("execve", None, path, 0), envp, |envp| libc(path, argv, envp))
    }

    fn execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        execute(&Call::on_the_way("execvpe", file, true), envp, |envp| libc(file, argv, envp))
    }

    fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        // Unlike execve(2), libc refuses to do without (EINVAL).
        if envp.is_null() {
            return libc(fd, argv, envp);
        }
        execute(&Call::of_open("fexecve", fd), envp, |envp| libc(fd, argv, envp))
    }

    fn execveat[EXECVEAT](
        directory: c_int, path: *const c_char, argv: *const *const c_char, envp: *const *const c_char, flags: c_int
    ) -> c_int |libc| {
        let call = Call::of_path("execveat", Some(directory), path, flags);
        execute(&call, envp, |envp| libc(directory, path, argv, envp, flags))
    }

    /// Takes the program's own environment, which may have lost the probe since, or have to lose it.
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => super::execve::<0>(path, argv, envp),
            None => execute(&Call::on_the_way("execv", path, false), own_environment(), |_| libc(path, argv)),
        }
    }

    /// As execv.
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => super::execvpe::<0>(file, argv, envp),
            None => execute(&Call::on_the_way("execvp", file, true), own_environment(), |_| libc(file, argv)),
        }
    }

    /// The program ends. exit(3) comes here too, in the end.
    fn _exit(status: c_int) -> Nothing |libc| {
        notices::say_exit(status);
        transport::leave();
        libc(status)
    }

    /// The child does not come back here, but begins at `function`.
    fn clone(
        function: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent_tid: *mut c_int,
        tls: *mut c_void, child_tid: *mut c_int
    ) -> c_int |libc| {
        const CLONE_VM: c_int = 0x100;
        const CLONE_THREAD: c_int = 0x1_0000;
        if flags & (CLONE_VM | CLONE_THREAD) == CLONE_VM {
            guest::be_wary();
        }
        libc(function, stack, flags, argument, parent_tid, tls, child_tid)
    }

    fn posix_spawn(
        pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        let call = Call { is_spawn: true, ..Call::on_the_way("posix_spawn", path, false) };
        spawn(|| exec::execute(&call, envp, |envp| libc(pid, path, actions, attributes, argv, envp)))
    }

    fn posix_spawnp(
        pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        let call = Call { is_spawn: true, ..Call::on_the_way("posix_spawnp", file, true) };
        spawn(|| exec::execute(&call, envp, |envp| libc(pid, file, actions, attributes, argv, envp)))
    }

    fn setrlimit[SETRLIMIT](resource: c_int, limit: *const c_void) -> c_int |libc| {
        limits_set(libc(resource, limit))
    }

    fn setrlimit64(resource: c_int, limit: *const c_void) -> c_int |libc| {
        limits_set(libc(resource, limit))
    }

    fn prlimit[PRLIMIT64](pid: c_int, resource: c_int, new: *const c_void, old: *mut c_void) -> c_int |libc| {
        limits_set(libc(pid, resource, new, old))
    }

    fn prlimit64(pid: c_int, resource: c_int, new: *const c_void, old: *mut c_void) -> c_int |libc| {
        limits_set(libc(pid, resource, new, old))
    }

    fn chroot[CHROOT](path: *const c_char) -> c_int |libc| {
        change_root(|| libc(path))
    }

    fn setns[SETNS](fd: c_int, kind: c_int) -> c_int |libc| {
        change_root(|| libc(fd, kind))
    }

    /// Every register passed through: how many arguments there are depends on the first.
    fn prctl[PRCTL](operation: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int |libc| {
        const PR_SET_TSC: c_int = 26;
        const SECCOMP_MODE_STRICT: c_ulong = 1;
        const PR_TSC_SIGSEGV: c_ulong = 2;
        if operation == calls::PR_SET_SECCOMP {
            calls::before_filter();
            exec::before_filter();
        }
        if operation == calls::PR_SET_SECCOMP && a == SECCOMP_MODE_STRICT {
            return strict::around(|| libc(operation, a, b, c, d));
        }
        if operation == PR_SET_TSC && a == PR_TSC_SIGSEGV {
            clock::forget_counter();
        }
        let result = libc(operation, a, b, c, d);
        calls::prctl(result, operation);
        result
    }
}

//! New processes, other programs, and the limits that a program puts on itself.

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};

use super::hooks;
use crate::{calls, exec, process};

hooks! {
    fn fork() -> c_int |libc| {
        let pid = libc();
        if pid == 0 {
            process::notice_fork();
        }
        pid
    }

    fn execve[EXECVE](path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(path, argv, envp))
    }

    fn execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(file, argv, envp))
    }

    fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(fd, argv, envp))
    }

    fn execveat[EXECVEAT](
        directory: c_int, path: *const c_char, argv: *const *const c_char, envp: *const *const c_char, flags: c_int
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(directory, path, argv, envp, flags))
    }

    /// Takes the program's own environment, which may have lost the probe since, or have to lose it.
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => super::execve(path, argv, envp),
            None => libc(path, argv),
        }
    }

    /// As execv.
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => super::execvpe(file, argv, envp),
            None => libc(file, argv),
        }
    }

    fn posix_spawn(
        pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(pid, path, actions, attributes, argv, envp))
    }

    fn posix_spawnp(
        pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(pid, file, actions, attributes, argv, envp))
    }

    /// Every register passed through: how many arguments there are depends on the first.
    fn prctl[PRCTL](operation: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int |libc| {
        let result = libc(operation, a, b, c, d);
        calls::prctl(result, operation);
        result
    }
}

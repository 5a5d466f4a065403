//! Errors (errno(3)) in words, by the numbers that they have on x86-64 and most other machines.

use std::error::Error;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Number, name, and what it means in the words of strerror(3).
const ERRORS: &[(i32, &str, &str)] = &[
    (1, "EPERM", "operation not permitted"),
    (2, "ENOENT", "no such file or directory"),
    (3, "ESRCH", "no such process"),
    (4, "EINTR", "interrupted system call"),
    (5, "EIO", "input/output error"),
    (6, "ENXIO", "no such device or address"),
    (7, "E2BIG", "argument list too long"),
    (8, "ENOEXEC", "exec format error"),
    (9, "EBADF", "bad file descriptor"),
    (10, "ECHILD", "no child processes"),
    (11, "EAGAIN", "resource temporarily unavailable"),
    (12, "ENOMEM", "cannot allocate memory"),
    (13, "EACCES", "permission denied"),
    (14, "EFAULT", "bad address"),
    (15, "ENOTBLK", "block device required"),
    (16, "EBUSY", "device or resource busy"),
    (17, "EEXIST", "file exists"),
    (18, "EXDEV", "invalid cross-device link"),
    (19, "ENODEV", "no such device"),
    (20, "ENOTDIR", "not a directory"),
    (21, "EISDIR", "is a directory"),
    (22, "EINVAL", "invalid argument"),
    (23, "ENFILE", "too many open files in system"),
    (24, "EMFILE", "too many open files"),
    (25, "ENOTTY", "inappropriate ioctl for device"),
    (26, "ETXTBSY", "text file busy"),
    (27, "EFBIG", "file too large"),
    (28, "ENOSPC", "no space left on device"),
    (29, "ESPIPE", "illegal seek"),
    (30, "EROFS", "read-only file system"),
    (31, "EMLINK", "too many links"),
    (32, "EPIPE", "broken pipe"),
    (33, "EDOM", "numerical argument out of domain"),
    (34, "ERANGE", "numerical result out of range"),
    (35, "EDEADLOCK", "resource deadlock avoided"),
    (36, "ENAMETOOLONG", "file name too long"),
    (37, "ENOLCK", "no locks available"),
    (38, "ENOSYS", "function not implemented"),
    (39, "ENOTEMPTY", "directory not empty"),
    (40, "ELOOP", "too many levels of symbolic links"),
    (42, "ENOMSG", "no message of desired type"),
    (43, "EIDRM", "identifier removed"),
    (44, "ECHRNG", "channel number out of range"),
    (45, "EL2NSYNC", "level 2 not synchronized"),
    (46, "EL3HLT", "level 3 halted"),
    (47, "EL3RST", "level 3 reset"),
    (48, "ELNRNG", "link number out of range"),
    (49, "EUNATCH", "protocol driver not attached"),
    (50, "ENOCSI", "no CSI structure available"),
    (51, "EL2HLT", "level 2 halted"),
    (52, "EBADE", "invalid exchange"),
    (53, "EBADR", "invalid request descriptor"),
    (54, "EXFULL", "exchange full"),
    (55, "ENOANO", "no anode"),
    (56, "EBADRQC", "invalid request code"),
    (57, "EBADSLT", "invalid slot"),
    (59, "EBFONT", "bad font file format"),
    (60, "ENOSTR", "device not a stream"),
    (61, "ENODATA", "no data available"),
    (62, "ETIME", "timer expired"),
    (63, "ENOSR", "out of streams resources"),
    (64, "ENONET", "machine is not on the network"),
    (65, "ENOPKG", "package not installed"),
    (66, "EREMOTE", "object is remote"),
    (67, "ENOLINK", "link has been severed"),
    (68, "EADV", "advertise error"),
    (69, "ESRMNT", "srmount error"),
    (70, "ECOMM", "communication error on send"),
    (71, "EPROTO", "protocol error"),
    (72, "EMULTIHOP", "multihop attempted"),
    (73, "EDOTDOT", "RFS specific error"),
    (74, "EBADMSG", "bad message"),
    (75, "EOVERFLOW", "value too large for defined data type"),
    (76, "ENOTUNIQ", "name not unique on network"),
    (77, "EBADFD", "file descriptor in bad state"),
    (78, "EREMCHG", "remote address changed"),
    (79, "ELIBACC", "can not access a needed shared library"),
    (80, "ELIBBAD", "accessing a corrupted shared library"),
    (81, "ELIBSCN", ".lib section in a.out corrupted"),
    (82, "ELIBMAX", "attempting to link in too many shared libraries"),
    (83, "ELIBEXEC", "cannot exec a shared library directly"),
    (84, "EILSEQ", "invalid or incomplete multibyte or wide character"),
    (85, "ERESTART", "interrupted system call should be restarted"),
    (86, "ESTRPIPE", "streams pipe error"),
    (87, "EUSERS", "too many users"),
    (88, "ENOTSOCK", "socket operation on non-socket"),
    (89, "EDESTADDRREQ", "destination address required"),
    (90, "EMSGSIZE", "message too long"),
    (91, "EPROTOTYPE", "protocol wrong type for socket"),
    (92, "ENOPROTOOPT", "protocol not available"),
    (93, "EPROTONOSUPPORT", "protocol not supported"),
    (94, "ESOCKTNOSUPPORT", "socket type not supported"),
    (95, "ENOTSUP", "operation not supported"),
    (96, "EPFNOSUPPORT", "protocol family not supported"),
    (97, "EAFNOSUPPORT", "address family not supported by protocol"),
    (98, "EADDRINUSE", "address already in use"),
    (99, "EADDRNOTAVAIL", "cannot assign requested address"),
    (100, "ENETDOWN", "network is down"),
    (101, "ENETUNREACH", "network is unreachable"),
    (102, "ENETRESET", "network dropped connection on reset"),
    (103, "ECONNABORTED", "software caused connection abort"),
    (104, "ECONNRESET", "connection reset by peer"),
    (105, "ENOBUFS", "no buffer space available"),
    (106, "EISCONN", "transport endpoint is already connected"),
    (107, "ENOTCONN", "transport endpoint is not connected"),
    (108, "ESHUTDOWN", "cannot send after transport endpoint shutdown"),
    (109, "ETOOMANYREFS", "too many references: cannot splice"),
    (110, "ETIMEDOUT", "connection timed out"),
    (111, "ECONNREFUSED", "connection refused"),
    (112, "EHOSTDOWN", "host is down"),
    (113, "EHOSTUNREACH", "no route to host"),
    (114, "EALREADY", "operation already in progress"),
    (115, "EINPROGRESS", "operation now in progress"),
    (116, "ESTALE", "stale file handle"),
    (117, "EUCLEAN", "structure needs cleaning"),
    (118, "ENOTNAM", "not a XENIX named type file"),
    (119, "ENAVAIL", "no XENIX semaphores available"),
    (120, "EISNAM", "is a named type file"),
    (121, "EREMOTEIO", "remote I/O error"),
    (122, "EDQUOT", "disk quota exceeded"),
    (123, "ENOMEDIUM", "no medium found"),
    (124, "EMEDIUMTYPE", "wrong medium type"),
    (125, "ECANCELED", "operation canceled"),
    (126, "ENOKEY", "required key not available"),
    (127, "EKEYEXPIRED", "key has expired"),
    (128, "EKEYREVOKED", "key has been revoked"),
    (129, "EKEYREJECTED", "key was rejected by service"),
    (130, "EOWNERDEAD", "owner died"),
    (131, "ENOTRECOVERABLE", "state not recoverable"),
    (132, "ERFKILL", "operation not possible due to RF-kill"),
];

/// The name of an error; of one that has none, `unknown error`.
pub fn name(number: i32) -> &'static str {
    find(number).map_or("unknown error", |error| error.1)
}

/// An error in words, with its name: `permission denied (EACCES)`.
pub fn words(number: i32) -> String {
    find(number).map_or_else(|| format!("error {number}"), |(_, name, text)| format!("{text} ({name})"))
}

/// An error and its causes in one line, those of the system as [`words`] says them.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(|error| number(error).map_or_else(|| error.to_string(), words)).collect::<Vec<_>>().join(": ")
}

fn number(error: &(dyn Error + 'static)) -> Option<i32> {
    let of_io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    of_io.or_else(|| error.downcast_ref::<Errno>().map(|error| error.raw_os_error()))
}

/// Why nothing can be made or written at a path, and what to do.
pub fn explain_output(path: &Path, error: &io::Error) -> String {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = folder.display();
    let why = explain(error);
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => format!("the folder {folder} does not exist: create it or choose another path"),
        Some(Errno::NOTDIR) => format!("{folder} is not a folder: choose another path"),
        Some(Errno::ACCESS | Errno::PERM) => format!("{why}: choose a folder that you may write to"),
        Some(Errno::NOSPC | Errno::DQUOT) => format!("{why}: make room or choose a path on another disk"),
        _ => format!("{why}: choose another path"),
    }
}

/// Why what is at a path cannot be read, and what to do.
pub fn explain_input(error: &io::Error) -> String {
    let why = explain(error);
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{why}: its owner or root may read it"),
        _ => why,
    }
}

fn find(number: i32) -> Option<&'static (i32, &'static str, &'static str)> {
    ERRORS.iter().find(|error| error.0 == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_this_machine() {
        assert_eq!(words(libc::ENOENT), "no such file or directory (ENOENT)");
        assert_eq!(name(libc::ECONNREFUSED), "ECONNREFUSED");
        assert_eq!((name(-1), words(0)), ("unknown error", "error 0".into()));
        assert!(ERRORS.is_sorted_by_key(|error| error.0));
    }

    #[test]
    fn errors_of_any_kind_are_said_in_one_way() {
        let denied = "permission denied (EACCES)";
        let of_io = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!((explain(&of_io), explain(&Errno::ACCESS)), (denied.into(), denied.into()));
        let with_context = anyhow::Error::from(of_io).context("/x: cannot be read");
        assert_eq!(explain(with_context.as_ref()), format!("/x: cannot be read: {denied}"));
        assert_eq!(explain(&io::Error::from_raw_os_error(4000)), "error 4000");
        assert_eq!(explain(&io::Error::other("no AT_ENTRY")), "no AT_ENTRY");
    }

    #[test]
    fn what_to_do() {
        let of = |error: Errno| explain_output(Path::new("/a/b"), &error.into());
        assert_eq!(of(Errno::NOENT), "the folder /a does not exist: create it or choose another path");
        assert_eq!(of(Errno::NOTDIR), "/a is not a folder: choose another path");
        assert_eq!(of(Errno::ROFS), "read-only file system (EROFS): choose another path");
    }
}

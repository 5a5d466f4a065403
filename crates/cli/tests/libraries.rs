//! Programs whose libraries have functions of libc's names, wants or doubles of their own: they get what they would
//! without us, and what goes over sockets is recorded once, or said not to be.

mod harness;

use std::path::Path;
use std::process::Command;

use harness::{command, compile, outcome, run, skipped};

/// Sends `greeting` from one end of a socket pair to the other.
const TALK: &str = r#"
#include <unistd.h>
#include <sys/socket.h>
int talk(void) {
    int pair[2]; char text[9];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    write(pair[0], "greeting", 8);
    return read(pair[1], text, 9) == 8 ? 42 : 2;
}
"#;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn library(folder: &Path, name: &str, source: &str) -> String {
    path(&compile(folder, &format!("{name}.so"), source, &["-w", "-shared", "-fPIC", "-fno-builtin"])).to_owned()
}

/// Its functions take and give what they like: arguments on the stack and in vector registers, a result on the x87's
/// stack, in memory, in several registers.
#[test]
fn functions_of_the_same_name() {
    const LIBRARY: &str = r#"
        struct big { long v[6]; };
        int listen(int a, int b, int c, int d, int e, int f, int g, int h) { return a + b + c + d + e + f + 100 * g + 1000 * h; }
        long double dup(long double x) { return 2 * x; }
        struct big accept(int x) { struct big b = {{ x, 2, 3, 4, 5, 6 }}; return b; }
        double _Complex send(double a, double b, double c, double d, double e, double f, double g, double h, double i) {
            return a + b + c + d + e + f + g + h + i + 2.0i;
        }
        static int early;
        __attribute__((constructor)) static void begin(void) { early = listen(1, 1, 1, 1, 1, 1, 7, 9); }
        int earlier(void) { return early; }
    "#;
    const PROGRAM: &str = r#"
        struct big { long v[6]; };
        int listen(int, int, int, int, int, int, int, int); long double dup(long double); struct big accept(int);
        double _Complex send(double, double, double, double, double, double, double, double, double); int earlier(void);
        int main(void) {
            if (earlier() != 9706) return 1;
            if (listen(1, 1, 1, 1, 1, 1, 7, 9) != 9706) return 2;
            if (dup(21) != 42) return 3;
            if (accept(3).v[5] != 6 || accept(3).v[0] != 3) return 4;
            double _Complex sum = send(1, 1, 1, 1, 1, 1, 1, 1, 1);
            return __real__ sum == 9 && __imag__ sum == 2 ? 42 : 5;
        }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), "names", LIBRARY);
    let program = compile(folder.path(), "program", PROGRAM, &["-w", "-fno-builtin", "-Wl,--no-as-needed", &library]);
    assert_eq!(outcome(&mut command(path(&program), &[])).code, Some(42));
    let traced = run(&["run", "--", path(&program)]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
}

/// A library makes the system calls by functions of its own, as libpthread of glibc did before 2.34.
#[test]
fn libraries_that_make_the_system_calls() {
    const LIBRARY: &str = r#"
        #include <unistd.h>
        #include <sys/socket.h>
        static long call(long n, long a, long b, long c, long d) {
            long r; register long r10 asm("r10") = d, r8 asm("r8") = 0, r9 asm("r9") = 0;
            asm volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
            return r;
        }
        ssize_t read(int f, void *b, size_t n) { return call(0, f, (long)b, n, 0); }
        ssize_t write(int f, const void *b, size_t n) { return call(1, f, (long)b, n, 0); }
    "#;
    let folder = tempfile::tempdir().unwrap();
    for (name, flag) in [("plain", "-O0"), ("fast", "-O2")] {
        let library =
            path(&compile(folder.path(), &format!("{name}.so"), LIBRARY, &["-w", "-shared", "-fPIC", flag])).to_owned();
        let main = format!("{TALK} int main(void) {{ return talk(); }}");
        let program = compile(folder.path(), name, &main, &["-w", "-Wl,--no-as-needed", &library]);
        let traced = run(&["run", "--", path(&program)]);
        assert_eq!(traced.code, Some(42), "{}", traced.err);
        assert_eq!(traced.err.matches("\"greeting\"").count(), 2, "{flag}: {}", traced.err);
    }
}

/// A libc in a namespace of its own, which is unloaded and loaded anew: recorded, and its `errno` is its own.
#[test]
fn further_libcs() {
    const PROGRAM: &str = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        int main(int count, char **arguments) {
            for (int round = 0; round < 20; round++) {
                void *library = dlmopen(LM_ID_NEWLM, arguments[1], RTLD_NOW);
                if (!library || ((int (*)(void))dlsym(library, "talk"))() != 42) return 1;
                if (((int (*)(void))dlsym(library, "fail"))() != 9) return 2;
                dlclose(library);
            }
            return 42;
        }
    "#;
    const FAIL: &str = "
        #include <errno.h>
        int fail(void) { errno = 0; return send(1 << 20, \"x\", 1, 0) == -1 ? errno : 0; }
    ";
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), "talk", &format!("{TALK}{FAIL}"));
    let program = compile(folder.path(), "program", PROGRAM, &["-w", "-Wl,--no-as-needed", "-ldl"]);
    let traced = run(&["run", "--", path(&program), &library]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    assert_eq!(traced.err.matches("\"greeting\"").count(), 40, "{}", traced.err);
}

/// Memory that is writable cannot be executable (PR_SET_MDWE, prctl(2)): what libc itself writes is recorded there, too.
#[test]
fn under_mdwe() {
    const PROGRAM: &str = r#"
        #include <stdio.h>
        #include <unistd.h>
        #include <sys/prctl.h>
        #include <sys/socket.h>
        int main(int count, char **arguments) {
            int pair[2]; char text[9];
            if (count == 1) {
                if (prctl(65, 1, 0, 0, 0)) return 77;
                execl(arguments[0], arguments[0], "confined", NULL);
            }
            socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
            FILE *file = fdopen(pair[0], "w");
            fputs("greeting", file);
            fclose(file);
            return read(pair[1], text, 9) == 8 ? 42 : 2;
        }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-w"]);
    if outcome(&mut command(path(&program), &[])).code == Some(77) {
        return skipped("under_mdwe", "this kernel has no PR_SET_MDWE");
    }
    let traced = run(&["run", "--", path(&program)]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    assert_eq!(traced.err.matches("\"greeting\"").count(), 2, "{}", traced.err);
}

/// Programs that a sanitizer was built into, as the program itself and as a child.
#[test]
fn instrumented_programs() {
    let folder = tempfile::tempdir().unwrap();
    let main = format!("{TALK} int main(void) {{ return talk(); }}");
    let source = folder.path().join("instrumented.c");
    std::fs::write(&source, main).unwrap();
    for sanitizer in ["address", "thread", "undefined", "leak"] {
        let program = folder.path().join(sanitizer);
        let mut compiler = Command::new("cc");
        compiler.args(["-w", &format!("-fsanitize={sanitizer}"), "-o", path(&program), path(&source)]);
        if outcome(&mut compiler).code != Some(0) || outcome(&mut command(path(&program), &[])).code != Some(42) {
            skipped("instrumented_programs", &format!("cc has no -fsanitize={sanitizer} that works here"));
            continue;
        }
        for traced in [
            run(&["run", "--", path(&program)]),
            run(&["run", "--", "sh", "-c", &format!("{}; exit $?", path(&program))]),
        ] {
            assert_eq!(traced.code, Some(42), "{sanitizer}: {}", traced.err);
            assert_eq!(traced.err.matches("\"greeting\"").count(), 2, "{sanitizer}: {}", traced.err);
        }
    }
}

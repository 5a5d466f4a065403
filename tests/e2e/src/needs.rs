//! What the tests need: what `make test` builds and names in the environment, and programs of the distribution.

use std::io::Write as _;
use std::path::PathBuf;

/// What `make test` has built, each named by an environment variable.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// The server's executable.
    Server,
    /// The executable `socktrace`.
    Socktrace,
    /// agent.js.
    Agent,
    /// Frida's command line, Frida 17.
    Frida,
    /// Frida's command line, the last Frida 16.
    Frida16,
}

impl Needs {
    const fn variable(self) -> &'static str {
        match self {
            Self::Server => "SOCKTRACE_SERVER",
            Self::Socktrace => "SOCKTRACE",
            Self::Agent => "SOCKTRACE_AGENT",
            Self::Frida => "SOCKTRACE_FRIDA",
            Self::Frida16 => "SOCKTRACE_FRIDA16",
        }
    }

    /// Where it is. The test fails if it is not there.
    pub fn path(self) -> PathBuf {
        let variable = self.variable();
        match std::env::var_os(variable) {
            Some(path) => PathBuf::from(path),
            None => panic!("run `make test` in the repository's root: it sets {variable}"),
        }
    }
}

/// Where Debian has the programs of each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";

/// A program's file, as a shell would find it, or an administrator.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir(POSTGRESQL).into_iter().flatten().flatten();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    dirs.chain(versions.map(|version| version.path().join("bin")))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether programs are installed; where one is not, says that the test is skipped.
pub fn has_programs(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| find_program(program).is_none());
    if let Some(program) = missing {
        announce_skipped(test, &format!("{program} is not installed"));
    }
    missing.is_none()
}

/// Says that a test is skipped, and why, past the test runner's capture.
pub fn announce_skipped(test: &str, why: &str) {
    // Nothing is left to do if stderr is closed.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

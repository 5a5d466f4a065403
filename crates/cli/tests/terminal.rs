//! In a real terminal: tmux(1) is one that tests can look at.

mod harness;

use std::path::Path;
use std::process::Command;

use harness::{SOCKTRACE, has, until};
use tempfile::TempDir;

/// A terminal with a shell in it.
struct Terminal {
    folder: TempDir,
}

impl Terminal {
    fn open() -> Self {
        let terminal = Self { folder: tempfile::tempdir().unwrap() };
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "200",
            "-y",
            "50",
            "env PS1='$ ' LANG=C.UTF-8 sh",
        ]);
        terminal.until("the prompt", |screen| screen.contains("$"));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let socket = self.folder.path().join("tmux");
        let output = Command::new("tmux").arg("-S").arg(socket).args(args).env_remove("TMUX").output().unwrap();
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-S", "-200"])
    }

    fn until(&self, what: &str, mut shows: impl FnMut(&str) -> bool) {
        let mut screen = String::new();
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, || {
                screen = self.screen();
                shows(&screen)
            });
        }));
        assert!(shown.is_ok(), "{what} is not on the screen:\n{screen}");
    }

    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let socket = self.folder.path().join("tmux");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").output();
    }
}

/// Lines that stand by themselves, not in the command that was typed.
fn has_line(screen: &str, line: &str) -> bool {
    screen.lines().any(|l| l.trim_end() == line)
}

#[test]
fn ctrl_c_is_the_programs() {
    if !has("tmux", "ctrl_c_is_the_programs") {
        return;
    }
    let terminal = Terminal::open();
    let script = "trap 'echo caught; exit 7' INT; echo waiting; while :; do sleep 0.05; done";
    terminal.line(&format!("{SOCKTRACE} run -- sh -c \"{script}\"; echo status $?"));
    terminal.until("the program waits", |screen| has_line(screen, "waiting"));
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.until("its end", |screen| has_line(screen, "status 7"));
    let screen = terminal.screen();
    assert!(has_line(&screen, "^Ccaught") || has_line(&screen, "caught"), "{screen}");
    // A program that does not catch it ends by it, and so does what we say of it.
    terminal.line(&format!("{SOCKTRACE} run -- sh -c 'echo again; exec sleep 1000'; echo status $?"));
    terminal.until("the program waits", |screen| has_line(screen, "again"));
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.until("its end", |screen| has_line(screen, "status 130"));
}

#[test]
fn an_interactive_shell_works_as_ever() {
    if !has("tmux", "an_interactive_shell_works_as_ever") || !has("bash", "an_interactive_shell_works_as_ever") {
        return;
    }
    let terminal = Terminal::open();
    let log = terminal.path("log");
    terminal.line(&format!("PS1='inner: ' {SOCKTRACE} run -o {log} -- bash --norc -i; echo status $?"));
    terminal.until("the shell's prompt", |screen| screen.lines().any(|line| line.starts_with("inner:")));
    terminal.line("tty; sleep 1000");
    terminal.until("its terminal", |screen| screen.lines().any(|line| line.starts_with("/dev/pts/")));
    // Job control: stop it, see it, bring it back, interrupt it.
    until("sleep runs", || terminal.tmux(&["display-message", "-p", "#{pane_current_command}"]).trim() == "sleep");
    terminal.tmux(&["send-keys", "C-z"]);
    terminal.until("it stops", |screen| screen.contains("Stopped"));
    terminal.line("fg");
    until("sleep runs", || terminal.tmux(&["display-message", "-p", "#{pane_current_command}"]).trim() == "sleep");
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.line("echo still here");
    terminal.until("the shell goes on", |screen| has_line(screen, "still here"));
    terminal.line("exit 5");
    terminal.until("its end", |screen| has_line(screen, "status 5"));
    assert!(Path::new(&log).exists());
}

#[test]
fn the_size_of_the_window_is_the_programs() {
    if !has("tmux", "the_size_of_the_window_is_the_programs") {
        return;
    }
    let terminal = Terminal::open();
    let script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done";
    terminal.line(&format!("{SOCKTRACE} run -- sh -c \"{script}\""));
    terminal.until("the size", |screen| has_line(screen, "50 200") || has_line(screen, "49 200"));
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.until("the new size", |screen| has_line(screen, "30 100") || has_line(screen, "29 100"));
    terminal.tmux(&["send-keys", "C-c"]);
}

#[test]
fn colours_on_a_terminal() {
    if !has("tmux", "colours_on_a_terminal") {
        return;
    }
    let terminal = Terminal::open();
    terminal.line(&format!("clear; {SOCKTRACE} run -- true; echo over"));
    terminal.until("the end", |screen| has_line(screen, "over"));
    assert!(terminal.tmux(&["capture-pane", "-p", "-e"]).contains("\x1b[2m"));
    terminal.line(&format!("clear; NO_COLOR=1 {SOCKTRACE} run -- true; echo over again"));
    terminal.until("the end", |screen| has_line(screen, "over again"));
    assert!(!terminal.tmux(&["capture-pane", "-p", "-e"]).contains("\x1b[2m"));
}

#[test]
fn a_pipe_closed_early_is_quiet() {
    if !has("tmux", "a_pipe_closed_early_is_quiet") {
        return;
    }
    let terminal = Terminal::open();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do true; sh -c :; done";
    terminal.line(&format!("clear; {SOCKTRACE} run -- sh -c '{script}' 2>&1 | head -n 1; echo over"));
    terminal.until("the end", |screen| has_line(screen, "over"));
    let screen = terminal.screen();
    let lines: Vec<_> = screen.lines().filter(|line| !line.trim().is_empty() && !line.contains("head -n 1")).collect();
    assert!(lines[0].contains(" start "), "{screen}");
    assert!(lines[1].trim_end() == "over", "{screen}");
}

#[test]
fn a_long_export_shows_how_far_it_is() {
    if !has("tmux", "a_long_export_shows_how_far_it_is") {
        return;
    }
    let mut traffic = harness::Traffic::of(1, "/x").open("c:1", "/c", "connect", &[]);
    for _ in 0..4000 {
        traffic = traffic.data("c:1", "/c", gttr::Direction::Out, &[b'x'; 1000]);
    }
    let recording = harness::Recording::of(&[traffic]);
    let terminal = Terminal::open();
    // It takes as long as its reader does, who waits for the bar.
    let go = terminal.folder.path().join("go");
    let reader = format!("(sleep 1; head -c 1000000; while ! test -e {}; do sleep 0.05; done; cat)", go.display());
    let export = format!("{SOCKTRACE} export {} -o - --format pcapng", recording.path);
    terminal.line(&format!("{export} | {reader} > /dev/null; echo all-was-$((1 + 1))-read"));
    terminal.until("a bar", |screen| screen.contains('%') && screen.contains('█'));
    std::fs::write(&go, "").unwrap();
    terminal.until("the end", |screen| screen.contains("all-was-2-read") && !screen.contains('█'));
}

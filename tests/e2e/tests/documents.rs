//! What people read is true: links lead somewhere, commands do what the pages say, tables say what the code says.
//!
//! The blocks marked `sh` of a page are run in order, by one shell, in a folder of the page's own. It has `demo/` and
//! `frida/` as the repository has them, and `socktrace`, `socktrace-server` and `frida` are in PATH. A block marked
//! `text` is what the block before prints, in any order of lines, with other numbers; a line `…` in it stands for lines
//! that are left out. The folder is `/home/ann/socktrace` in the pages.
//!
//! An HTML comment before a block says what a reader need not know:
//!
//! | | |
//! |---|---|
//! | `not run: WHY` | |
//! | `needs PROGRAM, …` | the block is skipped where one is missing |
//! | `in FOLDER` | where it is run |
//! | `background until FILE` | it does not end by itself; the next block waits for the file |
//! | `with A=B, …` | B is run in the place of A. `$PAGE` is the folder, `$SERVING` the process of a server |
//!
//! Several are separated by `;`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use socktrace_e2e::{Needs, has_programs};
use tempfile::TempDir;

/// What the pages call the folder that their commands are run in.
const FOLDER: &str = "/home/ann/socktrace";
/// Seconds that all commands of a page may take. Most of it is Frida's on a busy machine.
const PAGE_TIME: &str = "100";
/// What separates one block's output from the next one's.
const MARK: &str = "@@@";

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a crate is in a folder").into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fenced block of a page.
#[derive(Debug, Default)]
struct Block {
    line: usize,
    language: String,
    text: String,
    /// The comment before it.
    remarks: Vec<String>,
}

impl Block {
    fn remark(&self, name: &str) -> Option<&str> {
        self.remarks.iter().find_map(|remark| remark.strip_prefix(name)).map(|rest| rest.trim_start_matches([':', ' ']))
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut open, mut remarks) = (Vec::new(), None::<Block>, Vec::new());
    for (number, line) in page.lines().enumerate() {
        let trimmed = line.trim_start();
        match (&mut open, trimmed.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, Some(language)) => {
                let (line, language) = (number + 1, language.into());
                open = Some(Block { line, language, remarks: std::mem::take(&mut remarks), ..Block::default() });
            }
            (None, None) if trimmed.starts_with("<!--") => {
                let text = trimmed.trim_start_matches("<!--").trim_end_matches("-->").trim();
                // A reason may have semicolons, too.
                let whole = text.starts_with("not run:");
                let parts = text.split(';').map(|part| part.trim().to_owned());
                remarks = if whole { vec![text.to_owned()] } else { parts.collect() };
            }
            (None, None) if trimmed.is_empty() => {}
            (None, None) => remarks.clear(),
        }
    }
    assert!(open.is_none(), "a block does not end");
    found
}

/// The folder that a page's commands are run in.
struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let link = |what: &Path, name: &str| {
            let at = folder.path().join(name);
            fs::create_dir_all(at.parent().expect("it is in the folder")).expect("a folder in the temporary one");
            symlink(what, &at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        };
        link(&project().join("demo"), "demo");
        link(&Needs::Agent.path(), "frida/socktrace/agent.js");
        link(&Needs::Server.path(), "frida/socktrace/server/target/release/socktrace-server");
        link(&Needs::Server.path(), ".bin/socktrace-server");
        link(&Needs::Socktrace.path(), ".bin/socktrace");
        link(&Needs::Frida.path(), ".bin/frida");
        Self { folder }
    }

    /// Runs a script, and gives what it printed.
    fn run(&self, script: &str) -> String {
        let file = self.folder.path().join(".script");
        fs::write(&file, script).expect("a file in the temporary folder");
        let mut command = Command::new("timeout");
        // A signal from outside must reach all that a page has started.
        command.args(["--kill-after=5", PAGE_TIME, "bash"]).arg(&file).current_dir(self.folder.path());
        command.env_clear().env("HOME", self.folder.path()).env("LANG", "C.UTF-8").env("PAGE", self.folder.path());
        command.env("PATH", format!("{}/.bin:/usr/bin:/bin:/usr/sbin:/sbin", self.folder.path().display()));
        let output = command.output().expect("timeout of coreutils");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: the last block failed:\n{printed}", output.status);
        printed
    }
}

/// The script that runs a page's blocks, and which they are.
fn script(name: &str, blocks: &[Block]) -> (String, Vec<usize>) {
    let mut script =
        "exec 2>&1 < /dev/null\nset -e -o pipefail\ntrap 'kill $(jobs -p) 2> /dev/null; wait' EXIT\n".to_owned();
    if blocks.iter().any(|block| block.remark("with").is_some_and(|with| with.contains("$SERVING"))) {
        script += "python3 demo/hello.py serve serving.sock & SERVING=$!\n\
                   until [ -S serving.sock ]; do sleep 0.05; done\n";
    }
    let mut run = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let needs = block.remark("needs").map(|names| names.split(", ").collect::<Vec<_>>()).unwrap_or_default();
        let label = format!("documents {name}:{}", block.line);
        if block.language != "sh" || block.remark("not run").is_some() || !has_programs(&label, &needs) {
            continue;
        }
        let mut commands = block.text.trim_end().to_owned();
        for (from, to) in
            block.remark("with").into_iter().flat_map(|with| with.split(", ")).filter_map(|pair| pair.split_once('='))
        {
            assert!(commands.contains(from), "{name}:{}: there is no {from:?} to be replaced", block.line);
            commands = commands.replace(from, to);
        }
        script += &format!("echo '{MARK} {}'\ncd \"$PAGE/{}\"\n", block.line, block.remark("in").unwrap_or("."));
        match block.remark("background until") {
            Some(file) => {
                script += &format!("{commands} &\nuntil [ -e \"$PAGE/{file}\" ]; do sleep 0.05; done\n");
            }
            None => script += &format!("{commands}\n"),
        }
        run.push(index);
    }
    (script, run)
}

/// A line with its numbers masked, the page's folder named as the pages do, and spaces of any width.
fn masked(line: &str, folder: &Path) -> String {
    // Payload files have the path in their name.
    let folder = folder.display().to_string();
    let line = line.replace(&folder, FOLDER).replace(&folder.replace('/', "_"), &FOLDER.replace('/', "_"));
    let mut masked = String::new();
    for word in line.split_whitespace() {
        if !masked.is_empty() {
            masked.push(' ');
        }
        let mut in_number = false;
        for character in word.chars() {
            if character.is_ascii_digit() {
                if !in_number {
                    masked.push('0');
                }
                in_number = true;
            } else if !(in_number && matches!(character, '.' | ':')) {
                masked.push(character);
                in_number = false;
            }
        }
    }
    masked
}

/// Fails unless what was printed is what a page shows.
fn assert_shown(place: &str, shown: &str, printed: &str, folder: &Path) {
    const LEFT_OUT: &str = "…";
    let lines =
        |text: &str| text.lines().map(|line| masked(line, folder)).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    let (mut expected, mut there) = (lines(shown), lines(printed));
    let is_whole = !expected.iter().any(|line| line == LEFT_OUT);
    expected.retain(|line| line != LEFT_OUT);
    let missing: Vec<String> = expected
        .into_iter()
        .filter(|line| there.iter().position(|other| other == line).map(|at| there.swap_remove(at)).is_none())
        .collect();
    assert!(
        missing.is_empty() && (there.is_empty() || !is_whole),
        "{place}: the page shows\n  {}\nwhere it also prints\n  {}\nAll of it:\n{printed}",
        missing.join("\n  "),
        there.join("\n  ")
    );
}

fn page(name: &str) {
    let blocks = blocks(&read(&project().join(name)));
    let (script, run) = script(name, &blocks);
    assert!(!run.is_empty(), "{name}: no command of this page is run");
    let stage = Stage::new();
    let printed = stage.run(&script);
    let mut outputs = BTreeMap::<usize, String>::new();
    let mut line = 0;
    for printed in printed.lines() {
        match printed.strip_prefix(MARK).and_then(|number| number.trim().parse().ok()) {
            Some(number) => line = number,
            None => outputs.entry(line).or_default().extend([printed, "\n"]),
        }
    }
    for index in run {
        let Some(shown) = blocks.get(index + 1).filter(|next| next.language == "text") else { continue };
        let printed = outputs.get(&blocks[index].line).map_or("", String::as_str);
        assert_shown(&format!("{name}:{}", shown.line), &shown.text, printed, stage.folder.path());
    }
}

/// Every page with commands has a test here; [`every_page_is_tested`] sees to it.
macro_rules! pages {
    ($($test:ident: $name:literal,)+) => {
        const PAGES: &[&str] = &[$($name),+];
        $(
            #[test]
            fn $test() {
                page($name);
            }
        )+
    };
}

pages! {
    readme: "README.md",
    start: "docs/start.md",
    attach: "docs/attach.md",
    list: "docs/list.md",
    frida: "docs/frida.md",
    recording: "docs/recording.md",
    wireshark: "docs/wireshark.md",
    cookbook: "docs/cookbook.md",
}

/// Pages for those who work on socktrace: their commands are those of the Makefile, and take minutes.
const OTHERS: [&str; 3] = ["CONTRIBUTING.md", "docs/benchmarks.md", "docs/testing.md"];

#[test]
fn every_page_is_tested() {
    for file in documents() {
        let name = file.strip_prefix(project()).expect("below it").display().to_string();
        let has_commands = blocks(&read(&file)).iter().any(|block| block.language == "sh");
        let is_tested = PAGES.contains(&&*name) || OTHERS.contains(&&*name);
        assert!(is_tested || !has_commands, "{name} has commands that no test runs: name it in this file");
    }
}

/// All Markdown files.
fn documents() -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.expect("a folder's entry").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
                collect(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&project(), &mut found);
    found
}

/// A page's lines outside of blocks.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_block = false;
    page.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        (!in_block && !is_fence).then_some((number + 1, line))
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let mut found = Vec::<String>::new();
    for (_, line) in prose(page) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let anchor: String =
            title.trim().to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = found.iter().filter(|other| **other == anchor).count();
        found.push(if again == 0 { anchor } else { format!("{anchor}-{again}") });
    }
    found
}

/// The targets of a line's links, `[…](target)`.
fn links(line: &str) -> Vec<&str> {
    line.match_indices("](").filter_map(|(at, begin)| line[at + begin.len()..].split(')').next()).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for file in documents() {
        let text = read(&file);
        for (number, line) in prose(&text) {
            for link in links(line).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
                let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
                let target = if path.is_empty() { file.clone() } else { file.with_file_name(path) };
                let has_anchor =
                    |anchor| target.is_file() && anchors(&read(&target)).iter().any(|other| other == anchor);
                if !target.exists() || !anchor.is_none_or(has_anchor) {
                    wrong.push(format!("{}:{number}: {link}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n  {}", wrong.join("\n  "));
}

/// What a page names in backticks and looks like a file of the repository is one.
#[test]
fn files_that_are_named_exist() {
    const FOLDERS: [&str; 6] = ["crates/", "tests/", "frida/socktrace/", "docs/", "demo/", ".ci/"];
    /// Made by the build.
    const BUILT: [&str; 1] = ["frida/socktrace/agent.js"];
    let mut wrong = Vec::new();
    for file in documents() {
        let text = read(&file);
        for (number, line) in prose(&text) {
            let names = line.split('`').skip(1).step_by(2);
            let is_path = |name: &&str| {
                FOLDERS.iter().any(|folder| name.starts_with(folder)) && !name.contains(['*', ' ', '{', '…'])
            };
            for name in names.filter(is_path).filter(|name| !BUILT.contains(name)) {
                if !project().join(name).exists() {
                    wrong.push(format!("{}:{number}: {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "files that do not exist:\n  {}", wrong.join("\n  "));
}

/// README.md's picture is what `socktrace run` prints.
#[test]
fn the_picture_is_of_this_version() {
    if !has_programs("the_picture_is_of_this_version", &["curl", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let drawn = folder.path().join("picture.svg");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(project().join("demo/picture.py")).arg(&drawn).env("SOCKTRACE", Needs::Socktrace.path());
    assert!(command.status().expect("python3 starts").success());
    let texts = |svg: &Path| {
        let svg = read(svg);
        let texts = svg.lines().filter_map(|line| line.strip_prefix("<text ")?.split('>').nth(1)?.split('<').next());
        texts.map(|text| masked(text, folder.path())).collect::<Vec<_>>()
    };
    assert_eq!(texts(&project().join("docs/picture.svg")), texts(&drawn), "`make picture` draws it anew");
}

/// `make demo`.
#[test]
fn the_demo_shows_both_ways() {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(project().join("demo/demo.py"));
    command.env("SOCKTRACE", Needs::Socktrace.path()).env("SOCKTRACE_SERVER", Needs::Server.path());
    command.env("SOCKTRACE_AGENT", Needs::Agent.path()).env("SOCKTRACE_FRIDA", Needs::Frida.path());
    let output = command.output().expect("python3 starts");
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}{said}");
    let (run, frida) = shown.split_once("\n$ socktrace-server ").expect("both ways");
    let is_complete = |part: &str, arrows: [&str; 2]| arrows.iter().all(|arrow| part.contains(arrow));
    assert!(is_complete(run, [" → ", " ← "]) && is_complete(frida, ["  -> ", "  <- "]), "{shown}");
}

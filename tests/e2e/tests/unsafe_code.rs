//! CONTRIBUTING.md says in which crates and files there is `unsafe`, and where it says nothing it is forbidden.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of the crates, below this project's.
const CRATES: [&str; 3] = ["crates", "tests", "frida/socktrace"];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a crate is in a folder").into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A crate that has a row in the table, and the files and folders that the row names; none: all.
struct Row {
    name: String,
    places: Vec<String>,
}

fn table() -> Vec<Row> {
    let text = read(&project().join("CONTRIBUTING.md"));
    let section = text.split("### Where `unsafe` is").nth(1).expect("the section is there");
    let section = section.split("\n## ").next().expect("a section has an end");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (name, places) = (cells.next()?.to_owned(), cells.next()?);
        let places = places.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (name != "crate").then_some(Row { name, places })
    };
    section.lines().filter_map(row).collect()
}

/// Source files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("a folder's entry").path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Whether there is code that is unsafe, rather than a word in a comment.
fn has_unsafe(path: &Path) -> bool {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let is_unsafe = |line: &String| {
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("].iter().any(|begin| line.contains(begin))
    };
    read(path).lines().map(code).any(|line| is_unsafe(&line))
}

#[test]
fn the_table_is_true() {
    let table = table();
    let mut wrong = Vec::new();
    let folders = CRATES.map(|folder| fs::read_dir(project().join(folder)).expect("the crates' folder"));
    for entry in folders.into_iter().flatten().flatten() {
        let source = entry.path().join("src");
        if !source.is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().expect("a crate's name is ASCII");
        match table.iter().find(|row| row.name == name) {
            Some(row) => {
                let files: Vec<String> = sources(&source)
                    .iter()
                    .filter(|path| has_unsafe(path))
                    .map(|path| path.strip_prefix(&source).expect("below it").display().to_string())
                    .collect();
                let is_named = |file: &&String| row.places.iter().any(|place| file.starts_with(&**place));
                if !row.places.is_empty() {
                    wrong.extend(
                        files.iter().filter(|file| !is_named(file)).map(|file| format!("{name}: {file} is missing")),
                    );
                }
                let is_empty = |place: &&String| !files.iter().any(|file| file.starts_with(&***place));
                wrong.extend(row.places.iter().filter(is_empty).map(|place| format!("{name}: {place} has no unsafe")));
            }
            None => {
                let roots = ["lib.rs", "main.rs"].map(|root| source.join(root));
                let lacks = |root: &&PathBuf| root.is_file() && !read(root).contains("#![forbid(unsafe_code)]");
                wrong.extend(
                    roots.iter().filter(lacks).map(|root| format!("{}: nothing forbids unsafe", root.display())),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "CONTRIBUTING.md, \"Where `unsafe` is\":\n  {}", wrong.join("\n  "));
}

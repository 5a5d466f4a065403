//! The probe is layers: a module imports from its own layer and from those below it, and no modules import each other in a
//! circle. The layers are the modules of src/lib.rs, in its order, from the top down.
//!
//! What counts as an import is what is written: `use` lines, and paths that begin with `crate`, `super`, or the name of a
//! module. Tests of the modules may use what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module, by its path from the crate: `transport::socket`.
type Module = String;

/// The source of each module, without comments and tests.
fn sources(folder: &Path, within: &str, into: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = if within.is_empty() { name.to_owned() } else { format!("{within}::{name}") };
        if path.is_dir() {
            sources(&path, &module, into);
        } else if module != "lib" {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            // A visibility names a module, too, and imports nothing.
            let lines = text.lines().map(|line| line.split("//").next().unwrap().replace("pub(in crate::", "pub(in "));
            into.insert(module, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The paths of a `use`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let Some((front, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap();
        return vec![path.trim().trim_end_matches("::*").to_owned()];
    };
    let (inside, mut depth, mut part, mut paths) = (rest.rsplit_once('}').unwrap().0, 0, String::new(), Vec::new());
    for letter in inside.chars().chain([',']) {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            let part = std::mem::take(&mut part);
            let whole = |path: String| format!("{}{path}", front.trim()).trim_end_matches("::self").to_owned();
            paths.extend(Some(part.trim()).filter(|part| !part.is_empty()).into_iter().flat_map(expand).map(whole));
        } else {
            part.push(letter);
        }
    }
    paths
}

/// A path as it is from the crate, if it is one of the crate's. `of` is where it is written, `inner` by how many modules
/// within the file.
fn absolute(path: &str, of: &Module, inner: usize, names: &BTreeMap<String, Module>) -> Option<String> {
    let mut at = of.clone();
    let (mut rest, mut inner) = (path, inner);
    if let Some(path) = rest.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    while let Some(path) = rest.strip_prefix("super::") {
        rest = path;
        match inner {
            0 => at = at.rsplit_once("::").map_or(String::new(), |(before, _)| before.to_owned()),
            _ => inner -= 1,
        }
    }
    if rest != path {
        return Some(if at.is_empty() { rest.to_owned() } else { format!("{at}::{rest}") });
    }
    let (first, rest) = path.split_once("::").unwrap_or((path, ""));
    names.get(first).map(|module| format!("{module}::{rest}"))
}

/// What a module imports from: modules that have a file.
fn imports(module: &Module, text: &str, all: &BTreeSet<Module>) -> BTreeSet<Module> {
    let target = |path: &str| {
        let mut path = path.trim_end_matches("::").to_owned();
        while !all.contains(&path) {
            path = path.rsplit_once("::")?.0.to_owned();
        }
        Some(path)
    };
    // Modules that can be named as they are: those declared here, and those imported.
    let mut names: BTreeMap<String, Module> = all
        .iter()
        .filter_map(|other| other.strip_prefix(module)?.strip_prefix("::").filter(|name| !name.contains("::")))
        .map(|name| (name.to_owned(), format!("{module}::{name}")))
        .collect();
    let mut found = BTreeSet::new();
    // Where modules within the file begin, by their indentation.
    let mut within: Vec<usize> = Vec::new();
    let mut statement = String::new();
    for line in text.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code == "}" && within.last() == Some(&indent) {
            within.pop();
        }
        let is_use = code.starts_with("use ") || code.starts_with("pub") && code.contains(" use ");
        if is_use || !statement.is_empty() {
            statement += code;
            let Some((uses, _)) = statement.split_once(';') else { continue };
            for path in expand(uses.split_once("use ").unwrap().1.trim_start_matches('$')) {
                let Some(path) = absolute(&path, module, within.len(), &names) else { continue };
                found.extend(target(&path));
                if all.contains(&path) {
                    names.insert(path.rsplit("::").next().unwrap().to_owned(), path);
                }
            }
            statement.clear();
        } else {
            let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
            for word in code.split(|letter| !is_path(letter)).filter(|word| word.contains("::")) {
                let path = absolute(word.trim_start_matches(':'), module, within.len(), &names);
                found.extend(path.as_deref().and_then(target));
            }
        }
        // The macro makes a module of what it is given.
        let is_module = code.split('{').next().unwrap().contains("mod ") || code == "hooks! {";
        if is_module && code.ends_with('{') {
            within.push(indent);
        }
    }
    found.remove(module);
    found
}

fn read() -> (Vec<String>, BTreeMap<Module, BTreeSet<Module>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = fs::read_to_string(folder.join("lib.rs")).unwrap();
    let layers = root.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).map(str::to_owned);
    let mut texts = BTreeMap::new();
    sources(&folder, "", &mut texts);
    let all = texts.keys().cloned().collect();
    (layers.collect(), texts.iter().map(|(module, text)| (module.clone(), imports(module, text, &all))).collect())
}

#[test]
fn imports_point_downwards() {
    let (layers, imports) = read();
    let height = |module: &str| {
        let layer = module.split("::").next().unwrap();
        layers.iter().position(|name| name == layer).unwrap_or_else(|| panic!("{layer} is no module of src/lib.rs"))
    };
    let upwards: Vec<_> = imports
        .iter()
        .flat_map(|(module, others)| others.iter().map(move |other| (module, other)))
        .filter(|(module, other)| height(other) < height(module))
        .map(|(module, other)| format!("{module} imports from {other}, which stands above it"))
        .collect();
    assert!(upwards.is_empty(), "{}\nThe layers, from the top down: {}", upwards.join("\n"), layers.join(", "));
    // What is read is what is there: each layer but the lowest is seen to import something.
    for layer in &layers[..layers.len() - 1] {
        assert!(imports.iter().any(|(module, others)| module.starts_with(layer) && !others.is_empty()), "{layer}");
    }
}

#[test]
fn the_documentation_has_them_in_this_order() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/design.md");
    let text = fs::read_to_string(page).unwrap();
    let table = text.split("### Layers").nth(1).unwrap().split("### ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<Vec<_>>(), read().0);
}

#[test]
fn no_modules_import_each_other() {
    fn walk(
        module: &Module,
        imports: &BTreeMap<Module, BTreeSet<Module>>,
        way: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) {
        if let Some(at) = way.iter().position(|before| before == module) {
            panic!("a circle of imports: {} -> {module}", way[at..].join(" -> "));
        }
        if done.contains(module) {
            return;
        }
        way.push(module.clone());
        imports[module].iter().for_each(|other| walk(other, imports, way, done));
        way.pop();
        done.insert(module.clone());
    }
    let (_, imports) = read();
    let mut done = BTreeSet::new();
    imports.keys().for_each(|module| walk(module, &imports, &mut Vec::new(), &mut done));
    assert_eq!(done.len(), imports.len());
}

#[test]
fn what_is_an_import() {
    let expected = ["crate::a", "crate::a::b", "crate::a::c::d", "crate::a::c::e"];
    assert_eq!(expand("crate::a::{self, b, c::{d, e as f}}"), expected);
    let all: BTreeSet<_> = ["a", "a::b", "a::c", "d", "d::e"].map(str::to_owned).into();
    let of = |text: &str| imports(&"a::b".to_owned(), text, &all).into_iter().collect::<Vec<_>>();
    assert_eq!(of("use crate::d::e::Thing;\nuse super::c;"), ["a::c", "d::e"]);
    assert_eq!(of("use crate::d;\nfn f() {\n    d::e::g();\n}"), ["d", "d::e"]);
    assert_eq!(of("fn f() -> crate::d::e::Thing {}"), ["d::e"]);
    assert_eq!(of("mod inner {\n    use super::*;\n}\nuse super::Thing;"), ["a"]);
}

//! What cannot take the table from this crate has the same in it: agent.js, and the page about it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use socktrace_params::{MAX_FDS, MAX_SOCKET_PATH, MAX_WAIT_MS, Number, RING_BYTES, TABLE, Takes};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// As JavaScript writes it; None: there is none.
fn default(takes: Takes) -> Option<String> {
    Some(match takes {
        Takes::SocketPath(_) => return None,
        Takes::File => "''".into(),
        Takes::SocketPaths => "[]".into(),
        Takes::Word(_, default) => format!("'{default}'"),
        Takes::Whole(Number { default, .. }) | Takes::PowerOfTwo(Number { default, .. }) => default.to_string(),
        Takes::Switch => "false".into(),
    })
}

#[test]
fn agent_js_has_the_same_defaults_and_limits() {
    let loader = read("frida/socktrace/agent/loader.js");
    let constant = |name: &str| {
        let line = loader.lines().find_map(|line| line.strip_prefix("const ")?.strip_prefix(name)?.strip_prefix(" = "));
        line.unwrap_or_else(|| panic!("loader.js has no {name}")).split(';').next().unwrap_or_default()
    };
    let defaults = constant("DEFAULTS").trim_matches(['{', '}', ' ']);
    let found: BTreeMap<_, _> = defaults.split(", ").filter_map(|pair| pair.split_once(": ")).collect();
    let expected: Vec<_> = TABLE.iter().filter_map(|&(name, takes)| Some((name, default(takes)?))).collect();
    assert_eq!(found, expected.iter().map(|(name, default)| (*name, default.as_str())).collect());
    for (name, limit) in [
        ("MAX_MAX_FDS", MAX_FDS.to),
        ("MAX_MAX_WAIT_MS", MAX_WAIT_MS.to),
        ("MIN_RING", RING_BYTES.from),
        ("MAX_RING", RING_BYTES.to),
        ("MAX_PATH_BYTES", MAX_SOCKET_PATH as u64),
    ] {
        assert_eq!(constant(name), limit.to_string(), "{name}");
    }
    for (name, takes) in TABLE {
        let Takes::Word(words, _) = takes else { continue };
        let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
        let of_two = words.iter().map(|word| format!("p.{name} !== '{word}'")).collect::<Vec<_>>().join(" && ");
        assert!(loader.contains(&format!("[{list}].includes(p.{name})")) || loader.contains(&of_two), "{name}");
    }
}

#[test]
fn docs_have_the_same_types_and_defaults() {
    let page = read("docs/frida.md");
    let at = page.find("| parameter | type |").expect("docs/frida.md has a table of parameters");
    let rows = page[at..].lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<Vec<_>> = rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect();
    for (row, (name, takes)) in rows.iter().zip(TABLE) {
        assert_eq!(row[0], format!("`{name}`"));
        // The unit follows.
        assert!(row[1].starts_with(&takes.to_string()), "{name}: {} is not {takes}", row[1]);
        let default = match takes {
            Takes::SocketPath(_) => "required".into(),
            Takes::File => "none".into(),
            Takes::Whole(_) | Takes::PowerOfTwo(_) => default(takes).unwrap_or_default(),
            _ => format!("`{}`", default(takes).unwrap_or_default().replace('\'', "\"")),
        };
        assert_eq!(row[2], default, "{name}");
    }
    assert_eq!(rows.len(), TABLE.len());
}

//! The state machine stays pure and small.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{before_tests, expect_none, root};

/// Lines that the state machine may have without its tests.
const MOST_LINES: usize = 3000;

/// Names that bring time, chance, threads, floats or an order that differs from replica to replica.
const IMPURE_NAMES: &[&str] = &[
    "tokio",
    "futures",
    "async",
    "await",
    "rand",
    "HashMap",
    "HashSet",
    "RandomState",
    "f32",
    "f64",
    "tracing",
    "println",
    "eprintln",
    "dbg",
    "Instant",
    "SystemTime",
    "new_v4",
    "now_v7",
];

/// Modules of std that the state machine has no business in.
const IMPURE_MODULES: &[&str] =
    &["time", "fs", "net", "env", "io", "thread", "process", "sync", "hash_map", "hash_set", "random"];

/// The state machine's sources as they are compiled outside tests.
fn sources() -> Vec<(PathBuf, String)> {
    let directory = root().join("src/state-machine/src");
    let library = fs::read_to_string(directory.join("lib.rs")).expect("the library's root");
    let mut found = Vec::new();
    collect(&directory, &mut found);
    found.retain(|(path, _)| !is_for_tests(&library, path));
    assert!(found.len() > 5, "only {} files", found.len());
    found
}

fn collect(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            found.push((path, before_tests(&text).to_owned()));
        }
    }
}

/// Whether the library's root declares the module of `path` for tests only.
fn is_for_tests(library: &str, path: &Path) -> bool {
    let module = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    library.contains(&format!("#[cfg(test)]\nmod {module};"))
}

/// What is impure in one source: names, and paths below `std`, in a list of imports too.
fn impurities(source: &str) -> Vec<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let words = words(&code);
    let mut found: Vec<_> =
        words.iter().filter(|word| IMPURE_NAMES.contains(word)).map(|word| (*word).to_owned()).collect();
    for below_std in code.split("std::").skip(1) {
        let starts: Vec<&str> = match below_std.strip_prefix('{') {
            Some(list) => {
                list.split(';').next().unwrap_or_default().split([',', '{', '}']).map(str::trim).collect()
            }
            None => vec![below_std],
        };
        for start in starts {
            let module = start.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            if IMPURE_MODULES.contains(&module) {
                found.push(format!("std::{module}"));
            }
        }
    }
    found
}

fn words(code: &str) -> Vec<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

#[test]
fn the_state_machine_is_pure() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        found.extend(impurities(&text).iter().map(|what| format!("{}: {what}", path.display())));
    }
    expect_none("the same log must give the same state everywhere", &found);
}

#[test]
fn the_state_machine_is_small() {
    let lines: usize = sources().iter().map(|(_, text)| text.lines().count()).sum();
    assert!(lines <= MOST_LINES, "{lines} lines without tests; at most {MOST_LINES}");
}

#[test]
fn impurities_are_seen() {
    let rows = [
        ("use std::time::Duration;", "std::time"),
        ("use std::{collections::BTreeMap, fs::{self, File}};", "std::fs"),
        ("let now = SystemTime::now();", "SystemTime"),
        ("let ratio: f64 = 0.5;", "f64"),
        ("use std::collections::HashMap;", "HashMap"),
        ("let id = Uuid::new_v4();", "new_v4"),
    ];
    for (source, expected) in rows {
        assert_eq!(impurities(source), [expected], "{source}");
    }
    for pure in ["use std::collections::BTreeMap;", "// HashMap is not for us", "let random_words = brand;"] {
        assert_eq!(impurities(pure), Vec::<String>::new(), "{pure}");
    }
}

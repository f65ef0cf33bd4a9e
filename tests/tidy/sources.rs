//! What every file in the tree has to keep to.

use std::fs;

use crate::{before_tests, expect_none, output_of, root};

/// Lines that a Rust file may have before its tests.
const MOST_LINES: usize = 600;

/// A lock file names the registry in every entry, by nature.
const LOCK_FILE: &str = "Cargo.lock";

/// Words for work that is not done. Cut in two, so that this file has none of them.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Macros for work that is not done.
const UNFINISHED_MACROS: &[&str] = &[concat!("to", "do!"), concat!("unimpl", "emented!")];

/// Hosts of package registries: where packages come from is the machine's own setting.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("proxy.", "golang.org"),
    concat!("sum.", "golang.org"),
    concat!("registry.", "npmjs.org"),
    concat!("pypi", ".org"),
    concat!("deb.", "debian.org"),
];

/// Directories that only one machine has.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];

/// What every private key in text form begins with.
const PRIVATE_KEY: &str = concat!("PRIVATE ", "KEY-----");

/// A text file of the tree.
struct Source {
    path: String,
    text: String,
}

/// All text files that git tracks, and those that it would, in the order of their paths.
fn sources() -> Vec<Source> {
    let listed = output_of(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "-z"],
        &root(),
    );
    let mut paths: Vec<_> = listed.split('\0').filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    assert!(paths.len() > 50, "git names only {} files", paths.len());
    let read = |path: &&str| {
        // Binary files and files that are removed but not committed yet hold no text to look at.
        let text = fs::read(root().join(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
        Some(Source { path: (*path).to_owned(), text })
    };
    paths.iter().filter_map(read).collect()
}

/// The lines of `sources` that `is_wrong`, with where they are.
fn wrong_lines(sources: &[Source], is_wrong: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !source.path.ends_with(LOCK_FILE)) {
        for (index, line) in source.text.lines().enumerate().filter(|(_, line)| is_wrong(line)) {
            found.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
        }
    }
    found
}

/// Whether `line` has `word` with nothing that belongs to a word around it.
fn has_word(line: &str, word: &str) -> bool {
    let belongs = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        let after = line.get(start + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(belongs) && !after.is_some_and(belongs)
    })
}

fn is_unfinished(line: &str) -> bool {
    UNFINISHED.iter().any(|word| has_word(line, word))
        || UNFINISHED_MACROS.iter().any(|name| line.contains(name))
}

fn names_a_registry(line: &str) -> bool {
    REGISTRY_HOSTS.iter().any(|host| line.contains(host))
}

fn names_a_machine_path(line: &str) -> bool {
    MACHINE_PATHS.iter().any(|path| {
        line.match_indices(path).any(|(start, _)| {
            // Inside a longer path, or after a variable, it is no path from the root.
            let before = line.get(..start).and_then(|text| text.chars().next_back());
            !before.is_some_and(|c| c.is_alphanumeric() || "_-.}>".contains(c))
        })
    })
}

#[test]
fn files_are_short() {
    let too_long: Vec<_> = sources()
        .iter()
        .filter(|source| source.path.ends_with(".rs"))
        .map(|source| (&source.path, before_tests(&source.text).lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path}: {lines}"))
        .collect();
    expect_none(&format!("files of more than {MOST_LINES} lines before their tests"), &too_long);
}

#[test]
fn no_work_is_left_in_the_sources() {
    expect_none("unfinished work", &wrong_lines(&sources(), is_unfinished));
}

#[test]
fn no_registry_is_named() {
    expect_none("hosts of package registries", &wrong_lines(&sources(), names_a_registry));
}

#[test]
fn no_path_of_a_machine_is_named() {
    expect_none("absolute paths of one machine", &wrong_lines(&sources(), names_a_machine_path));
}

#[test]
fn no_private_key_is_in_the_tree() {
    expect_none("private keys", &wrong_lines(&sources(), |line| line.contains(PRIVATE_KEY)));
}

#[test]
fn the_lock_file_is_in_the_tree() {
    let listed = output_of("git", &["ls-files", LOCK_FILE], &root());
    assert_eq!(listed.trim(), LOCK_FILE, "what is built has to be what was tested");
}

#[test]
fn wrong_lines_are_seen() {
    let source = |text: String| vec![Source { path: "a.rs".to_owned(), text }];
    let [word, ..] = UNFINISHED else { panic!("no words") };
    let unfinished = source(format!("fine\n    // {word}: later\nA{word} and _{word} are names\n"));
    assert_eq!(wrong_lines(&unfinished, is_unfinished), [format!("a.rs:2: // {word}: later")]);

    let [path, ..] = MACHINE_PATHS else { panic!("no paths") };
    let paths = source(format!("cd {path}main\n\"{path}x\"\n$HERE{path}x is relative\n"));
    assert_eq!(wrong_lines(&paths, names_a_machine_path).len(), 2);

    let [host, ..] = REGISTRY_HOSTS else { panic!("no hosts") };
    assert_eq!(wrong_lines(&source(format!("see https://{host}/x\n")), names_a_registry).len(), 1);
    let lock = vec![Source { path: format!("a/{LOCK_FILE}"), text: format!("{host}\n") }];
    assert!(wrong_lines(&lock, names_a_registry).is_empty());
}

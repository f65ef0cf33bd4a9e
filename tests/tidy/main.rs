//! Is the house tidy? Reads manifests and sources, runs nothing of ours.
//!
//! - `edges`: which room may import which (DESIGN's layout table), and who may know openraft, sled and the
//!   Kubernetes client
//! - `sources`: length of files, unfinished work, names and keys that must not be in the tree
//! - `core`: the state machine's purity and size

mod core;
mod edges;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

/// What `program` prints, run in `directory`.
fn output_of(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {complaint}");
    String::from_utf8(output.stdout).unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"))
}

/// The part of a Rust source that comes before its tests.
fn before_tests(source: &str) -> &str {
    match source.find("\n#[cfg(test)]\nmod tests {") {
        Some(end) => source.get(..=end).unwrap_or(source),
        None => source,
    }
}

/// Fails with all `mistakes`, one a line.
fn expect_none(rule: &str, mistakes: &[String]) {
    assert!(mistakes.is_empty(), "{rule}:\n  {}", mistakes.join("\n  "));
}

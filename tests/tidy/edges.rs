//! Dependencies point one way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::{expect_none, output_of, root};

/// A room and what it may import of ours.
struct Row {
    room: &'static str,
    /// What its library and binary may import; `None`: anything.
    imports: Option<&'static [&'static str]>,
    /// What its tests may import beside that.
    tests_import: &'static [&'static str],
}

const fn row(room: &'static str, imports: &'static [&'static str]) -> Row {
    Row { room, imports: Some(imports), tests_import: &[] }
}

const fn row_with_tests(
    room: &'static str,
    imports: &'static [&'static str],
    tests_import: &'static [&'static str],
) -> Row {
    Row { room, imports: Some(imports), tests_import }
}

/// DESIGN's layout table. Where it is wider than DESIGN, a comment says why.
const TABLE: &[Row] = &[
    row("planted", &[]),
    row("proto", &[]),
    row("state-machine", &[]),
    row("storage", &["state-machine", "planted"]),
    // Beside DESIGN's rooms: files of certificates, for both ends of every line.
    row("tls", &[]),
    row("replica", &["state-machine", "storage", "proto", "tls"]),
    // The conformance suite runs against the simulated appliance too.
    row_with_tests("backend", &["state-machine"], &["routeros-simulator"]),
    // It stands in for hardware: what it knew of us would make it agree with us.
    row("routeros-simulator", &[]),
    row("csi", &["state-machine", "proto"]),
    // `src/kube`: a package cannot have the name of the client that it uses.
    row("observer", &["state-machine"]),
    row(
        "controller",
        &["state-machine", "storage", "replica", "backend", "csi", "observer", "proto", "planted", "tls"],
    ),
    row("node", &["csi", "proto", "state-machine", "tls"]),
    // Wider than DESIGN. Beside the two plugins it runs the simulated appliance (`dev`); its clients (`dev`, `ctl`)
    // speak the protocols, and expect the server's name that `replica` lays down; a scenario looks at the appliance
    // itself, with the driver's own client and types; `certificates` keeps what it makes in Kubernetes, and `bench`
    // serves `observer`'s webhook by itself, with the TLS that controllers have.
    row(
        "rds-csi",
        &[
            "controller",
            "node",
            "routeros-simulator",
            "proto",
            "replica",
            "backend",
            "observer",
            "state-machine",
            "tls",
        ],
    ),
    Row { room: "tests", imports: None, tests_import: &[] },
    Row { room: "chaos", imports: None, tests_import: &[] },
];

/// Crates that only some rooms may know, by the start of their names.
const GUARDED: &[(&str, &[&str])] = &[
    // The simulator runs openraft itself, on simulated disks and networks.
    ("openraft", &["storage", "replica", "chaos"]),
    ("sled", &["storage"]),
    ("kube", &["observer"]),
    // The tests hold what the chart renders against the API's types.
    ("k8s-openapi", &["observer", "tests"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Room>,
}

#[derive(Deserialize)]
struct Room {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev` or `build`; absent for a normal one.
    kind: Option<String>,
    /// Set if it is a directory of ours.
    path: Option<String>,
}

impl Dependency {
    fn is_for_tests(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

/// The rooms of the workspace at `directory`, as their manifests say.
fn rooms(directory: &Path) -> Vec<Room> {
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let text = output_of("cargo", &arguments, directory);
    serde_json::from_str::<Metadata>(&text).expect("cargo's metadata").packages
}

/// Edges between our rooms that the table does not have.
fn wrong_edges(rooms: &[Room]) -> Vec<String> {
    let mut found = Vec::new();
    for room in rooms {
        let Some(row) = TABLE.iter().find(|row| row.room == room.name) else { continue };
        let Some(imports) = row.imports else { continue };
        for dependency in room.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let name = dependency.name.as_str();
            // Nothing in what is shipped: constants that are false, and calls that are empty.
            let allowed = name == "planted"
                || imports.contains(&name)
                || (dependency.is_for_tests() && row.tests_import.contains(&name));
            if !allowed {
                found.push(format!("{} imports {name}", room.name));
            }
        }
    }
    found
}

/// Rooms that know a crate which is not for them.
fn wrong_acquaintances(rooms: &[Room]) -> Vec<String> {
    let mut found = Vec::new();
    for room in rooms {
        for dependency in room.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
            for (guarded, knowing) in GUARDED {
                if dependency.name.starts_with(guarded) && !knowing.contains(&room.name.as_str()) {
                    found.push(format!("{} knows {}, which is for {knowing:?}", room.name, dependency.name));
                }
            }
        }
    }
    found
}

fn rooms_without_row(rooms: &[Room]) -> Vec<String> {
    let known: BTreeSet<_> = TABLE.iter().map(|row| row.room).collect();
    rooms.iter().filter(|room| !known.contains(room.name.as_str())).map(|room| room.name.clone()).collect()
}

#[test]
fn every_room_has_a_row() {
    let rooms = rooms(&root());
    assert!(rooms.len() >= 10, "cargo names only {} rooms", rooms.len());
    expect_none("rooms that the table in tests/tidy/edges.rs does not have", &rooms_without_row(&rooms));
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    expect_none("edges that the table in tests/tidy/edges.rs does not have", &wrong_edges(&rooms(&root())));
}

#[test]
fn only_some_rooms_know_openraft_sled_and_the_kubernetes_client() {
    expect_none("rooms that know too much", &wrong_acquaintances(&rooms(&root())));
}

/// A made-up workspace with `manifests`: a room's name and its dependency tables.
fn made_up(manifests: &[(&str, &str)]) -> Vec<Room> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let names: Vec<_> = manifests.iter().map(|(name, _)| *name).collect();
    let workspace = format!("[workspace]\nresolver = \"3\"\nmembers = {names:?}\n");
    fs::write(directory.path().join("Cargo.toml"), workspace).expect("writable");
    for (name, dependencies) in manifests {
        let room = directory.path().join(name);
        fs::create_dir_all(room.join("src")).expect("writable");
        fs::write(room.join("src/lib.rs"), "").expect("writable");
        let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\n{dependencies}");
        fs::write(room.join("Cargo.toml"), manifest).expect("writable");
    }
    rooms(directory.path())
}

#[test]
fn a_wrong_edge_is_seen() {
    let found = made_up(&[
        ("state-machine", ""),
        ("routeros-simulator", ""),
        ("storage", "[dependencies]\nstate-machine = { path = \"../state-machine\" }"),
        // Allowed in tests only.
        ("backend", "[dev-dependencies]\nrouteros-simulator = { path = \"../routeros-simulator\" }"),
        // A sibling, in whatever table and under whatever name.
        ("node", "[dev-dependencies]\nbox = { package = \"backend\", path = \"../backend\" }"),
        ("csi", "[target.'cfg(unix)'.dependencies]\nstorage = { path = \"../storage\" }"),
        ("controller", "[dependencies]\nrouteros-simulator = { path = \"../routeros-simulator\" }"),
        ("attic", ""),
    ]);
    let mut edges = wrong_edges(&found);
    edges.sort();
    assert_eq!(
        edges,
        ["controller imports routeros-simulator", "csi imports storage", "node imports backend"]
    );
    assert_eq!(rooms_without_row(&found), ["attic"]);
}

#[test]
fn a_wrong_acquaintance_is_seen() {
    let found = made_up(&[
        ("storage", "[dependencies]\nopenraft = \"0.10\"\nsled = \"0.34\""),
        (
            "replica",
            "[dependencies]\nopenraft = \"0.10\"\nraft_log = { package = \"sled\", version = \"0.34\" }",
        ),
        ("controller", "[dependencies]\nkube-runtime = \"1\""),
        ("observer", "[dependencies]\nkube-client = \"1\"\nk8s-openapi = \"1\""),
    ]);
    let seen = wrong_acquaintances(&found);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().any(|line| line.starts_with("replica knows sled")), "{seen:?}");
    assert!(seen.iter().any(|line| line.starts_with("controller knows kube-runtime")), "{seen:?}");
}

//! What csi-sanity's report says, and which skipped specs are right to be skipped.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What csi-sanity itself does not run in this version, whoever the driver is.
const PENDING: &[&str] =
    &["Controller Service [Controller Server] ListVolumes pagination should detect volumes added \
                           between pages and accept tokens when the last volume from a page is deleted"];

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    /// Specs that ran and passed.
    pub passed: Vec<String>,
    /// Specs that ran and did not, with what they said.
    pub failed: Vec<String>,
    /// Reasons of the skipped specs, and how many each skipped.
    pub skipped: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Report {
    /// Reads the JSON report of a run.
    pub fn parse(text: &str) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(text).context("cannot read csi-sanity's report")?;
        let mut report = Self { passed: Vec::new(), failed: Vec::new(), skipped: BTreeMap::new() };
        for spec in suites.into_iter().flat_map(|suite| suite.spec_reports) {
            let name = format!(
                "{} {}",
                spec.container_hierarchy_texts.unwrap_or_default().join(" "),
                spec.leaf_node_text
            );
            let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
            match (spec.leaf_node_type.as_str(), spec.state.as_str()) {
                ("It", "passed") => report.passed.push(name),
                ("It", "skipped") => *report.skipped.entry(message).or_default() += 1,
                ("It", "pending") if PENDING.contains(&name.as_str()) => {}
                // Set-up around the specs is worth a word only if it went wrong.
                (_, "passed") => {}
                (_, state) => report.failed.push(format!("{name}: {state}: {message}")),
            }
        }
        ensure!(!report.passed.is_empty() || !report.failed.is_empty(), "csi-sanity ran no spec");
        Ok(report)
    }

    /// Fails if a spec failed, or was skipped although the driver claims what it needs.
    pub fn expect_good(&self, advertised: &BTreeSet<Capability>) -> Result<()> {
        ensure!(self.failed.is_empty(), "failed:\n{}", self.failed.join("\n"));
        let wrong = wrongly_skipped(&self.skipped, advertised);
        ensure!(wrong.is_empty(), "skipped although no capability says so: {wrong:?}");
        Ok(())
    }
}

/// A capability by its number on the wire: csi-sanity knows some that our version of CSI does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// `PluginCapability.Service.Type`.
    Plugin(i32),
    /// `ControllerServiceCapability.RPC.Type`.
    Controller(i32),
    /// `NodeServiceCapability.RPC.Type`.
    Node(i32),
}

/// The reasons for which csi-sanity may skip specs, each with the capability whose absence makes it right.
const REASONS: &[(&str, Capability)] = &[
    ("GroupControllerService not supported", Capability::Plugin(3)),
    ("SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported", Capability::Plugin(5)),
    ("Snapshot not supported", Capability::Controller(5)),
    ("CreateSnapshot not supported", Capability::Controller(5)),
    ("DeleteSnapshot not supported", Capability::Controller(5)),
    ("ListSnapshots not supported", Capability::Controller(6)),
    ("Volume Cloning not supported", Capability::Controller(7)),
    ("ControllerPublishVolume.readonly field not supported", Capability::Controller(8)),
    ("Modify volume not supported", Capability::Controller(14)),
    ("Modify Volume not supported", Capability::Controller(14)),
    ("ControllerModifyVolume not supported", Capability::Controller(14)),
    ("GetSnapshot not supported", Capability::Controller(15)),
    ("ControllerGetVolumeHealth not supported", Capability::Controller(16)),
    ("ControllerListVolumeHealth not supported", Capability::Controller(17)),
    ("NodeGetVolumeHealth not supported", Capability::Node(7)),
    ("NodeGetStorageHealth not supported", Capability::Node(8)),
];

/// Reasons that skipped specs although no capability says so.
fn wrongly_skipped(skipped: &BTreeMap<String, usize>, advertised: &BTreeSet<Capability>) -> Vec<String> {
    let is_right = |reason: &str| {
        REASONS.iter().any(|(known, capability)| *known == reason && !advertised.contains(capability))
    };
    skipped.keys().filter(|reason| !is_right(reason)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let text = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["Node", "Stage"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
            {"ContainerHierarchyTexts": ["Node"], "LeafNodeType": "It", "LeafNodeText": "breaks", "State": "panicked",
             "Failure": {"Message": "boom"}},
            {"ContainerHierarchyTexts": ["Node"], "LeafNodeType": "It", "LeafNodeText": "waits", "State": "pending"},
            {"ContainerHierarchyTexts": ["Node"], "LeafNodeType": "It", "LeafNodeText": "x", "State": "skipped",
             "Failure": {"Message": "Snapshot not supported"}}]}]"#;
        let report = Report::parse(text).expect("a report");
        assert_eq!(report.passed, ["Node Stage works"]);
        assert_eq!(report.failed, ["Node breaks: panicked: boom", "Node waits: pending: "]);
        assert_eq!(report.skipped.get("Snapshot not supported"), Some(&1));
        assert!(Report::parse("[]").is_err(), "nothing ran");
    }

    #[test]
    fn a_skip_is_right_only_without_the_capability() {
        let skipped = BTreeMap::from([("Snapshot not supported".to_owned(), 3), ("too tired".to_owned(), 1)]);
        assert_eq!(wrongly_skipped(&skipped, &BTreeSet::new()), ["too tired"]);
        let advertised = BTreeSet::from([Capability::Controller(5)]);
        assert_eq!(wrongly_skipped(&skipped, &advertised), ["Snapshot not supported", "too tired"]);
    }
}

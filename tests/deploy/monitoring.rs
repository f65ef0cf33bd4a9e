//! Alerts and dashboards ask for metrics that the driver has: docs/metrics.md, which a test of the driver keeps true.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::chart::render;
use crate::objects::{list, text};
use crate::{expect_none, root};

/// What Prometheus makes of one histogram.
const HISTOGRAM_ENDS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// All words in `text` that are metrics of ours.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("rds_csi_")).collect()
}

fn known_metrics() -> String {
    fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md")
}

/// The metrics in `queries` that are not documented.
fn unknown(queries: &str) -> Vec<String> {
    let documented = known_metrics();
    let known = metrics_in(&documented);
    let is_known = |metric: &str| {
        let stem = HISTOGRAM_ENDS.iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric);
        known.contains(metric) || known.contains(stem)
    };
    metrics_in(queries).into_iter().filter(|metric| !is_known(metric)).map(str::to_owned).collect()
}

fn alerts() -> Vec<Value> {
    let objects = render("everything");
    let rules = objects.of_kind("PrometheusRule").flat_map(|rule| list(rule, "spec/groups").to_vec());
    let alerts: Vec<_> = rules.flat_map(|group| list(&group, "rules").to_vec()).collect();
    assert!(alerts.len() >= 8, "only {} alerts", alerts.len());
    alerts
}

#[test]
fn alerts_ask_for_metrics_that_exist_and_say_what_to_do() {
    let troubleshooting =
        fs::read_to_string(root().join("docs/troubleshooting.md")).expect("docs/troubleshooting.md");
    for alert in alerts() {
        let name = text(&alert, "alert");
        let expression = text(&alert, "expr");
        assert!(!metrics_in(expression).is_empty(), "{name} asks for nothing of ours");
        assert!(!expression.contains("{{"), "{name}: {expression}");
        expect_none(name, &unknown(expression));
        for annotation in ["summary", "description"] {
            assert!(
                text(&alert, &format!("annotations/{annotation}")).len() > 20,
                "{name} has no {annotation}"
            );
        }
        let heading = format!("\n## {name}\n");
        assert!(troubleshooting.contains(&heading), "docs/troubleshooting.md has no section {name}");
        let anchor = format!("docs/troubleshooting.md#{}", name.to_lowercase());
        assert_eq!(text(&alert, "annotations/runbook_url"), anchor);
        assert!(["critical", "warning", "info"].contains(&text(&alert, "labels/severity")), "{name}");
    }
}

#[test]
fn dashboards_ask_for_metrics_that_exist() {
    let mut boards = 0;
    for entry in fs::read_dir(root().join("deploy/dashboards")).expect("deploy/dashboards") {
        let path = entry.expect("a file").path();
        let board: Value =
            serde_json::from_str(&fs::read_to_string(&path).expect("a dashboard")).expect("JSON");
        let queries: Vec<_> =
            list(&board, "panels").iter().flat_map(|panel| list(panel, "targets")).collect();
        assert!(queries.len() > 5, "{} has {} queries", path.display(), queries.len());
        for query in queries {
            let expression = text(query, "expr");
            assert!(!metrics_in(expression).is_empty(), "{expression:?} asks for nothing of ours");
            expect_none(&path.display().to_string(), &unknown(expression));
        }
        boards += 1;
    }
    assert_eq!(boards, 2);
}

#[test]
fn a_metric_that_is_not_there_is_seen() {
    let query = "rate(rds_csi_raft[1m]) + rds_csi_operation_duration_seconds_bucket + rds_csi_typo_total";
    assert_eq!(unknown(query), ["rds_csi_typo_total"]);
}

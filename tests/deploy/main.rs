//! What `deploy/` renders, held against everything that can be asked without a cluster.
//!
//! - `chart`: Helm, run with each set of values in `values/`
//! - `strict`: each object fits its type in the Kubernetes API, no field left over; `custom` for those of CRDs
//! - `policy`: rules for what runs, each seen to fail when it is broken (`broken`)
//! - `settings`: the driver itself reads its settings and command lines, from the files that are mounted
//! - `manifests`: the plain manifests are what the chart renders
//! - `monitoring`: alerts and dashboards ask for metrics that exist
//!
//! That a cluster accepts and runs all of it is not shown here: deploy/README.md says what is unproven.

mod broken;
mod chart;
mod custom;
mod manifests;
mod monitoring;
mod objects;
mod policy;
mod settings;
mod strict;

use std::path::{Path, PathBuf};

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

/// Fails with all `mistakes`, one a line.
fn expect_none(rule: &str, mistakes: &[String]) {
    assert!(mistakes.is_empty(), "{rule}:\n  {}", mistakes.join("\n  "));
}

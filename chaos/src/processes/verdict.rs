//! What the invariants say of a history: of a run that just ended, or of one that was kept.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::history::History;
use crate::invariants;

/// `chaos judge`.
#[derive(Debug, Args)]
pub struct JudgeArguments {
    /// What a run has recorded, as JSON
    #[arg(value_name = "FILE")]
    history: PathBuf,
}

/// Judges a history that was kept; an error if an invariant is broken.
pub fn judge(arguments: &JudgeArguments) -> Result<()> {
    let file = &arguments.history;
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let history =
        serde_json::from_slice(&text).with_context(|| format!("{} is no history", file.display()))?;
    let violations = violations(&history);
    for violation in &violations {
        println!("VIOLATION: {violation}");
    }
    ensure!(violations.is_empty(), "{} violations", violations.len());
    println!("violations: 0");
    Ok(())
}

/// The broken invariants, in a sentence each.
pub(super) fn violations(history: &History) -> Vec<String> {
    let report = invariants::judge(history);
    println!(
        "I7: {} volumes' histories put in an order, {} given up",
        report.searched,
        report.given_up.len()
    );
    report.violations.iter().map(ToString::to_string).collect()
}

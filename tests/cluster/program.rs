//! The program as a newcomer runs it: its scenario, and what it says to flags and settings that are wrong.

use std::fs;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tests::tools;
use tokio::process::Command;
use tokio::time::timeout;

/// How long the program may run, in seconds.
const RUN_LIMIT_S: u64 = 240;

/// Exit status of a story in which something did not hold is 1; that of wrong flags and settings is 2.
const USAGE_STATUS: i32 = 2;

/// What the scenario prints for machines.
#[derive(Debug, Deserialize)]
struct Story {
    all_checks_held: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    name: String,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    what: String,
    held: bool,
    expected: String,
    came: String,
}

async fn run(arguments: &[&str]) -> Result<Output> {
    let output = Command::new(tools::rds_csi()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let limit = Duration::from_secs(RUN_LIMIT_S);
    timeout(limit, output)
        .await
        .with_context(|| format!("{arguments:?} ran too long"))?
        .context("start rds-csi")
}

/// Plays the scenario; everything that it checks has to hold, and it has to check so many things.
pub(crate) async fn play(scenario: &str, least_checks: usize) -> Result<()> {
    let output = run(&["dev", "--scenario", scenario, "--json"]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    let story: Story = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}: no JSON on standard output; it said: {said}", output.status))?;
    for step in &story.steps {
        println!("{}", step.name);
        for Check { what, held, expected, came } in &step.checks {
            ensure!(*held, "{}: {what}: expected {expected}, came {came}; it said: {said}", step.name);
            println!("  {what}: {came}");
        }
    }
    let checks: usize = story.steps.iter().map(|step| step.checks.len()).sum();
    ensure!(story.all_checks_held && checks >= least_checks, "only {checks} checks: {story:?}");
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_survives_its_leader() -> Result<()> {
    play("migration-failover", 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_wrong_flags_are_named_at_once() -> Result<()> {
    let output = run(&["dev", "--controllers", "2", "--nodes", "99"]).await?;
    expect_usage(&output, &["--controllers 2", "--nodes 99"])
}

#[tokio::test(flavor = "multi_thread")]
async fn all_wrong_settings_are_named_at_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("node.toml");
    let settings = "node_id = 'node a'\ncontrollers = ['no-port']\ncsi_socket = 'relative.sock'\n\
                    [tls]\nca = '/nowhere/ca'\ncert = '/nowhere/cert'\nkey = '/nowhere/key'\n\
                    [fabric]\nkind = 'fake'\ndirectory = '/nowhere'\n";
    fs::write(&path, settings)?;
    let output = run(&["node", "--config", &path.display().to_string()]).await?;
    expect_usage(
        &output,
        &["node_id", "controllers", "csi_socket", "/nowhere/ca", "/nowhere/cert", "/nowhere/key"],
    )
}

fn expect_usage(output: &Output, named: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(USAGE_STATUS), "{}: {said}", output.status);
    for name in named {
        ensure!(said.contains(name), "{name} is not named: {said}");
    }
    Ok(())
}

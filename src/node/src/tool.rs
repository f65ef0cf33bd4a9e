//! The system's own tools (`mount`, `mkfs`, `losetup`, …), run with a time limit.
//!
//! Life cycle: one call, one process; it is killed if its time is up or its caller goes. Arguments are passed as
//! they are, never through a shell, and come from checked types. The environment is fixed, so that messages are
//! in one language and the tool is found where the system keeps it.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::process::Command;
use tokio::time::timeout;

/// Where tools are looked for.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a tool's complaint goes into an error, in bytes.
const MAX_COMPLAINT_BYTES: usize = 512;

/// Why a tool did not do its work.
#[derive(Debug, Error)]
pub(crate) enum ToolError {
    /// It is not installed, or may not be run.
    #[error("cannot start {tool}: {source}")]
    Start {
        /// The tool.
        tool: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long; what it did is unknown.
    #[error("{tool} was stopped after {limit_ms} ms")]
    OutOfTime {
        /// The tool.
        tool: &'static str,
        /// Its time limit in ms.
        limit_ms: u128,
    },
    /// It said no.
    #[error("{tool} failed ({status}): {complaint}")]
    Failed {
        /// The tool.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// What it wrote, shortened.
        complaint: String,
    },
}

/// How a tool ended.
#[derive(Debug)]
pub(crate) struct ToolOutput {
    /// Its exit status; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
}

impl ToolOutput {
    /// The tool's complaint on one line, shortened.
    pub(crate) fn complaint(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(MAX_COMPLAINT_BYTES).collect()
    }
}

/// Runs `tool` to its end, whatever its exit status.
pub(crate) async fn run(
    tool: &'static str,
    arguments: &[&OsStr],
    limit: Duration,
) -> Result<ToolOutput, ToolError> {
    let child = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", TOOL_PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(limit, child).await {
        Err(_) => Err(ToolError::OutOfTime { tool, limit_ms: limit.as_millis() }),
        Ok(Err(source)) => Err(ToolError::Start { tool, source }),
        Ok(Ok(output)) => Ok(ToolOutput {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

/// Runs `tool`; any exit status but 0 is an error.
pub(crate) async fn succeed(
    tool: &'static str,
    arguments: &[&OsStr],
    limit: Duration,
) -> Result<ToolOutput, ToolError> {
    let output = run(tool, arguments, limit).await?;
    if output.code == Some(0) {
        return Ok(output);
    }
    let status = output.code.map_or("ended by a signal".to_owned(), |code| format!("exit status {code}"));
    Err(ToolError::Failed { tool, status, complaint: output.complaint() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_tool_that_fails_says_why() {
        let error = succeed("ls", &["/no/such/place".as_ref()], LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("ls failed (exit status 2)") && error.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_stopped() {
        let error = run("sleep", &["60".as_ref()], Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ToolError::OutOfTime { tool: "sleep", limit_ms: 50 }), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_is_missing_is_named() {
        let error = run("no-such-tool", &[], LIMIT).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot start no-such-tool"), "{error}");
    }
}

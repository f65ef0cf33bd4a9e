//! The system's own tools (`mount`, `mkfs`, `losetup`, …), run with a time limit.
//!
//! Life cycle: one call, one process. When its time is up it is killed, and the call ends only when it is known to be
//! dead, or says that it is not: what waits for a device inside the kernel cannot be killed. If the caller goes, it
//! is killed without that. Arguments are passed as they are, never through a shell, and come from checked types. The
//! environment is fixed, so that messages are in one language and the tool is found where the system keeps it.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Where tools are looked for.
pub(crate) const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a tool's complaint goes into an error, in bytes.
const MAX_COMPLAINT_BYTES: usize = 512;
/// How much of what a tool prints is kept, in bytes.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;
/// How long a killed tool may take to end before it is given up, in ms.
const KILL_LIMIT_MS: u64 = 10_000;

/// Why a tool did not do its work.
#[derive(Debug, Error)]
pub(crate) enum ToolError {
    /// It is not installed, or may not be run.
    #[error("cannot start {tool}: {source}")]
    Start {
        /// The tool.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long and was killed; what it did until then is unknown, but it does nothing more.
    #[error("{tool} was stopped after {limit_ms} ms")]
    OutOfTime {
        /// The tool.
        tool: &'static str,
        /// Its time limit in ms.
        limit_ms: u128,
    },
    /// It took too long, was killed, and has not ended: it may still do its work.
    #[error(
        "{tool} (process {pid}) was killed after {limit_ms} ms and has not ended: it waits for the device"
    )]
    StillRuns {
        /// The tool.
        tool: &'static str,
        /// Its process id.
        pid: u32,
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
    let mut child = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", TOOL_PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ToolError::Start { tool, source })?;
    match timeout(limit, output_of(&mut child)).await {
        Ok(output) => output.map_err(|source| ToolError::Start { tool, source }),
        Err(_) => Err(stop(tool, child, limit).await),
    }
}

async fn output_of(child: &mut Child) -> io::Result<ToolOutput> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = tokio::try_join!(child.wait(), text_of(stdout), text_of(stderr))?;
    Ok(ToolOutput { code: status.code(), stdout, stderr })
}

async fn text_of(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await?;
        // What comes after that is not kept; without a reader the tool would stop.
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Kills the tool and waits until it is dead, so that nothing of it goes on when its volume is let go of.
async fn stop(tool: &'static str, mut child: Child, limit: Duration) -> ToolError {
    let (pid, limit_ms) = (child.id().unwrap_or_default(), limit.as_millis());
    match timeout(Duration::from_millis(KILL_LIMIT_MS), child.kill()).await {
        Ok(Ok(())) => ToolError::OutOfTime { tool, limit_ms },
        // It ended by itself, and a process of its own keeps its output open.
        Ok(Err(_)) if matches!(child.try_wait(), Ok(Some(_))) => ToolError::OutOfTime { tool, limit_ms },
        Ok(Err(_)) | Err(_) => ToolError::StillRuns { tool, pid, limit_ms },
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
    use std::path::Path;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_tool_that_fails_says_why() {
        let error = succeed("ls", &["/no/such/place".as_ref()], LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("ls failed (exit status 2)") && error.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_dead_when_it_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
        let limit = Duration::from_secs(2);
        let error = run("sh", &["-c".as_ref(), script.as_ref()], limit).await.unwrap_err();
        assert!(matches!(error, ToolError::OutOfTime { tool: "sh", limit_ms: 2000 }), "{error}");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it still runs, or nobody has seen it end");
    }

    #[tokio::test]
    async fn a_tool_that_is_missing_is_named() {
        let error = run("no-such-tool", &[], LIMIT).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot start no-such-tool"), "{error}");
    }
}

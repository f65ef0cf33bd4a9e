//! One child process: started, signalled, watched, and never left behind.
//!
//! A child is told to end when its standard input does. That pipe's other end is here, so a child ends even if
//! this process is killed with SIGKILL. It has a process group of its own: Ctrl-C reaches this process only, which
//! then ends its children in order.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::surroundings::Surroundings;

/// How often a child is looked at while its end is awaited, in ms.
const POLL_MS: u64 = 5;
/// How much of a log's end is shown, in bytes.
const TAIL_BYTES: u64 = 4096;
/// How much of a log's end is shown, in lines.
const TAIL_LINES: usize = 15;

/// A program with arguments and a log file, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    binary: PathBuf,
    arguments: Vec<OsString>,
    surroundings: Surroundings,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A process that is not running yet.
    pub(crate) fn new(name: &str, binary: &Path, arguments: Vec<OsString>, log: PathBuf) -> Self {
        let surroundings = Surroundings::default();
        Self { name: name.to_owned(), binary: binary.to_owned(), arguments, surroundings, log, child: None }
    }

    /// The same in these surroundings.
    pub(crate) fn surrounded(mut self, surroundings: Surroundings) -> Self {
        self.surroundings = surroundings;
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it; what it prints is added to its log.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        if self.pid().is_some() {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        let output = log.try_clone().with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut line = self.surroundings.launcher.clone();
        line.push(self.binary.clone().into());
        let child = Command::new(line.remove(0))
            .args(line)
            .args(&self.arguments)
            .envs(self.surroundings.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&mut self) -> Option<u32> {
        match self.exit_status() {
            Ok(None) => self.child.as_ref().map(Child::id),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait().with_context(|| format!("cannot look after {}", self.name)),
            None => bail!("{} was never started", self.name),
        }
    }

    /// SIGKILL; returns once it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { bail!("{} was never started", self.name) };
        child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        child.wait().with_context(|| format!("cannot look after {}", self.name))?;
        Ok(())
    }

    /// Sends `signal`, if it runs.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(pid) = self.pid() else { bail!("{} does not run", self.name) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn wait_for_exit(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {} ms", self.name, limit.as_millis());
            }
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// The end of its log, for errors.
    pub(crate) fn log_tail(&self) -> String {
        match tail(&self.log) {
            Ok(text) => format!("the end of {}:\n{text}", self.log.display()),
            Err(error) => format!("no log: {}: {error}", self.log.display()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.pid().is_some()
            && let Err(error) = self.kill()
        {
            tracing::warn!(name = self.name, error = format!("{error:#}"), "a child may be left behind");
        }
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let size_bytes = fs::metadata(path)?.len();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(size_bytes.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(directory: &Path, script: &str) -> Process {
        let arguments = vec!["-c".into(), script.into()];
        Process::new("child", Path::new("/bin/sh"), arguments, directory.join("child.log"))
    }

    #[tokio::test]
    async fn what_it_prints_is_in_its_log_and_a_second_run_adds_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "echo out; echo err >&2; exit 3");
        for _ in 0..2 {
            process.start().unwrap();
            assert_eq!(process.wait_for_exit(LIMIT).await.unwrap().code(), Some(3));
        }
        let log = fs::read_to_string(directory.path().join("child.log")).unwrap();
        assert_eq!(log.matches("out").count() + log.matches("err").count(), 4, "{log}");
        assert!(process.log_tail().contains("err"));
    }

    #[tokio::test]
    async fn a_dropped_process_is_gone_even_if_it_was_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "exec sleep 1000");
        process.start().unwrap();
        process.signal(Signal::STOP).unwrap();
        let pid = process.pid().unwrap();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn a_child_sees_its_standard_input_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell(directory.path(), "cat; exit 7");
        process.start().unwrap();
        assert!(process.wait_for_exit(Duration::from_millis(50)).await.is_err());
        drop(process.child.as_mut().unwrap().stdin.take());
        assert_eq!(process.wait_for_exit(LIMIT).await.unwrap().code(), Some(7));
    }
}

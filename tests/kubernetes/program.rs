//! Programs: where they are, and their processes with their logs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// Lines of a log that are shown when something failed.
const LINES_SHOWN: usize = 25;

/// The tree's root.
pub(crate) fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// A program that `tests/kubernetes/prepare` builds.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let path = tree().join("target/kubernetes").join(name);
    ensure!(path.is_file(), "{} is missing: run tests/kubernetes/prepare, which builds it", path.display());
    Ok(path)
}

/// A process, and the file that it logs to. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    log: PathBuf,
    child: Child,
}

impl Program {
    /// Starts `command`, which logs to a file in `logs`: after what is there, if it is started again.
    pub(crate) fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look after {}", self.name))
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("look after {}", self.name))?;
        Ok(())
    }

    /// All that it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log.
    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let shown = lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default();
        format!("--- the end of {}'s log\n{}", self.name, shown.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that ended already cannot be killed, which is what is wanted.
        self.kill().unwrap_or_default();
    }
}

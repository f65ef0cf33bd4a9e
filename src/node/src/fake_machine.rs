//! A directory that stands in for a machine: what would be in its kernel is in files there.
//!
//! Life cycle: [`FakeMachine::boot`] makes the directories; with another boot id than the last one's it first
//! forgets what a reboot would end (connections, mounts, open devices), and keeps what is on the volumes.
//!
//! `journal` has a line for each change of a connection, in order: the moment in ns on the machine's monotonic clock,
//! `connected` or `disconnected`, the volume. A plugin that died between a change and its line left the line to its
//! successor.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use state_machine::BootId;
use tokio::fs;

/// A fake machine's directory.
#[derive(Debug, Clone)]
pub(crate) struct FakeMachine {
    directory: PathBuf,
}

impl FakeMachine {
    /// The machine in `directory`, running under `boot`.
    pub(crate) async fn boot(directory: &Path, boot: &BootId) -> io::Result<Self> {
        let machine = Self { directory: directory.to_path_buf() };
        let mark = directory.join("boot");
        let rebooted = fs::read_to_string(&mark).await.is_ok_and(|last| last.trim() != boot.as_str());
        for lost_at_reboot in [machine.connected(), machine.held(), machine.mounts()] {
            if rebooted && fs::try_exists(&lost_at_reboot).await? {
                fs::remove_dir_all(&lost_at_reboot).await?;
            }
            fs::create_dir_all(&lost_at_reboot).await?;
        }
        fs::create_dir_all(machine.formatted()).await?;
        machine.write(&mark, boot.as_str()).await?;
        machine.complete_journal().await?;
        tracing::info!(directory = %directory.display(), %boot, rebooted, "fake machine: no real devices or mounts");
        Ok(machine)
    }

    /// One file per connected volume.
    pub(crate) fn connected(&self) -> PathBuf {
        self.directory.join("connected")
    }

    /// One file per volume whose device a simulated process has open.
    pub(crate) fn held(&self) -> PathBuf {
        self.directory.join("held")
    }

    /// The moment, for the journal.
    pub(crate) fn now_ns() -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
    }

    /// Adds a change of a connection to the journal.
    pub(crate) fn note(&self, at_ns: u64, change: &str, volume: &str) -> io::Result<()> {
        let mut journal = OpenOptions::new().create(true).append(true).open(self.journal())?;
        journal.write_all(format!("{at_ns} {change} {volume}\n").as_bytes())
    }

    /// Nobody opens a device while this is there: what is not held stays so. Not to be kept over an await: it blocks.
    pub(crate) fn lock_held(&self) -> io::Result<File> {
        let held = File::open(self.held())?;
        flock(&held, FlockOperation::LockExclusive)?;
        Ok(held)
    }

    fn journal(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Adds what changed without a line: at a reboot, or as the plugin died.
    async fn complete_journal(&self) -> io::Result<()> {
        let text = match fs::read_to_string(self.journal()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut noted = BTreeSet::new();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [_, "connected", volume] => noted.insert(volume),
                [_, "disconnected", volume] => noted.remove(volume),
                _ => false,
            };
        }
        let there = self.names_in(&self.connected()).await?;
        for lost in noted.iter().filter(|volume| !there.iter().any(|name| name == *volume)) {
            self.note(Self::now_ns(), "disconnected", lost)?;
        }
        for found in there.iter().filter(|name| !noted.contains(name.as_str())) {
            self.note(Self::now_ns(), "connected", found)?;
        }
        Ok(())
    }

    /// One file per mount.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.directory.join("mounts")
    }

    /// One file per volume that has a file system.
    pub(crate) fn formatted(&self) -> PathBuf {
        self.directory.join("formatted")
    }

    /// Writes a file that is either whole or not there.
    pub(crate) async fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        let mut unfinished = file.as_os_str().to_owned();
        unfinished.push("~");
        fs::write(&unfinished, text).await?;
        fs::rename(&unfinished, file).await
    }

    /// The names of the finished files in `directory`.
    pub(crate) async fn names_in(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut entries = fs::read_dir(directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            names.extend(entry.file_name().into_string().ok().filter(|name| !name.ends_with('~')));
        }
        Ok(names)
    }
}

//! A directory that stands in for a machine: what would be in its kernel is in files there.
//!
//! Life cycle: [`FakeMachine::boot`] makes the directories; with another boot id than the last one's it first
//! forgets what a reboot would end (connections, mounts, open devices), and keeps what is on the volumes.

use std::io;
use std::path::{Path, PathBuf};

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

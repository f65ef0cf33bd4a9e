//! What the simulated appliance holds, read from the file that it keeps it in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::Volume;
use serde::Deserialize;

/// The simulated appliance's state: what outlives its process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Appliance {
    /// Its disks, by their ids.
    disks: BTreeMap<u64, Disk>,
    /// Sizes in bytes of its files, by name.
    files: BTreeMap<String, u64>,
    /// Its script objects: the fence, which every change moves.
    scripts: Vec<Script>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Disk {
    slot: String,
    file_path: String,
    size_bytes: u64,
    exported: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Script {
    name: String,
    source: String,
}

impl Appliance {
    /// Reads the simulated appliance's state file. An appliance that never held anything has none.
    pub fn read(state_file: &Path) -> Result<Self> {
        if !state_file.exists() {
            return Ok(Self { disks: BTreeMap::new(), files: BTreeMap::new(), scripts: Vec::new() });
        }
        let text =
            fs::read_to_string(state_file).with_context(|| format!("read {}", state_file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", state_file.display()))
    }

    /// Whether there is neither a disk nor a file.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.files.is_empty()
    }

    /// The size in bytes of the volume's disk; `None` if there is none.
    pub fn size_of(&self, volume: &str) -> Option<u64> {
        self.disks.values().find(|disk| disk.slot == volume).map(|disk| disk.size_bytes)
    }

    /// Fails unless appliance and ledger hold the same volumes, none of them half-done.
    pub fn expect_agrees(&self, ledger: &[Volume]) -> Result<()> {
        for volume in ledger {
            ensure!(volume.phase == "Ready", "{} is {}: {:?}", volume.id, volume.phase, volume.problem);
            let disk = self.disks.values().find(|disk| disk.slot == volume.id);
            let disk = disk.with_context(|| format!("ghost: {} is in the ledger only", volume.id))?;
            ensure!(disk.exported, "{} is not exported", volume.id);
            ensure!(
                disk.size_bytes == volume.size_bytes,
                "{} has {} bytes in the ledger, {} on the appliance",
                volume.id,
                volume.size_bytes,
                disk.size_bytes
            );
        }
        let is_known = |slot: &str| ledger.iter().any(|volume| volume.id == slot);
        for disk in self.disks.values() {
            ensure!(is_known(&disk.slot), "orphan: disk {} is on the appliance only", disk.slot);
        }
        for name in self.files.keys() {
            let has_disk = self.disks.values().any(|disk| disk.file_path.trim_start_matches('/') == name);
            ensure!(has_disk, "orphan: file {name} has no disk");
        }
        Ok(())
    }
}

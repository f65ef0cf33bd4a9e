//! Node plugins die, and nodes reboot.

use std::fs;

use anyhow::{Context, Result};
use uuid::Uuid;

use super::{Nemesis, Struck};
use crate::history::Installed;
use crate::processes::clients::close;

/// How long a plugin is away, in ms.
const AWAY_MS: std::ops::Range<u64> = 200..2_000;
/// How long a plugin is stopped, in ms.
const STOPPED_MS: std::ops::Range<u64> = 2_000..6_000;
/// The setting that stands in for the kernel's boot id.
const BOOT_ID: &str = "boot_id = ";

impl Nemesis {
    /// What is connected stays connected.
    pub(super) async fn kill_plugin(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_node() else { return Ok(self.skipped("a node")) };
        self.lab.kill(&target)?;
        let at = self.lab.recorder.now();
        self.wait(AWAY_MS).await;
        self.lab.ensure_running(&target)?;
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader: false, healed: true }])
    }

    /// It is there and says nothing: what is to be proven by it has to wait.
    pub(super) async fn stop_plugin(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_node() else { return Ok(self.skipped("a node")) };
        self.lab.cluster().suspend(&target)?;
        let at = self.lab.recorder.now();
        self.wait(STOPPED_MS).await;
        let is_stopped = self.lab.process_state(&target) == Some('T');
        self.lab.cluster().resume(&target)?;
        let installed = if is_stopped { Installed::Yes } else { Installed::Indeterminate };
        Ok(vec![Struck { target, at, installed, hit_leader: false, healed: true }])
    }

    /// Nothing is connected or open any more, and the plugin comes back under another boot id.
    pub(super) async fn reboot_node(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_node() else { return Ok(self.skipped("a node")) };
        let (path, held) = {
            let cluster = self.lab.cluster();
            (cluster.config_path(&target), cluster.state_directory(&target).join("held"))
        };
        let settings =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let kept: Vec<&str> = settings.lines().filter(|line| !line.starts_with(BOOT_ID)).collect();
        let settings = format!("{BOOT_ID}\"{}\"\n{}\n", Uuid::new_v4(), kept.join("\n"));
        self.lab.kill(&target)?;
        let at = self.lab.recorder.now();
        for entry in fs::read_dir(&held).with_context(|| format!("cannot read {}", held.display()))? {
            close(&self.lab, &target, &entry?.file_name().to_string_lossy());
        }
        fs::write(&path, settings).with_context(|| format!("cannot write {}", path.display()))?;
        self.wait(AWAY_MS).await;
        self.lab.ensure_running(&target)?;
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader: false, healed: true }])
    }
}

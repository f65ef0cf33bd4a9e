//! Devices of the fake fabric, and the simulated processes that have them open: files in the fake machine's directory.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use rustix::fs::{FlockOperation, flock};

use super::cluster::Cluster;

/// Who has a device open, in a story: a simulated process.
const HOLDER: &str = "4711 (qemu-kvm)";

impl Cluster {
    fn fake_file(&self, node: &str, kind: &str, volume: &str) -> PathBuf {
        self.state_directory(node).join(kind).join(volume)
    }

    /// Whether the volume is connected on the node.
    pub fn is_connected(&self, node: &str, volume: &str) -> bool {
        self.fake_file(node, "connected", volume).exists()
    }

    /// A simulated process opens the volume's device on the node, which is an error if it is not there.
    pub fn hold(&self, node: &str, volume: &str) -> anyhow::Result<()> {
        let file = self.fake_file(node, "held", volume);
        let directory = file.parent().context("a file is in a directory")?;
        // The plugin holds the same lock from its look at the holders to the end of the connection.
        let lock =
            fs::File::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the fake devices")?;
        ensure!(self.is_connected(node, volume), "{volume} is not connected on {node}");
        fs::write(&file, HOLDER).with_context(|| format!("cannot write {}", file.display()))
    }

    /// It closes it again, if it had it open.
    pub fn release(&self, node: &str, volume: &str) -> anyhow::Result<()> {
        let file = self.fake_file(node, "held", volume);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", file.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

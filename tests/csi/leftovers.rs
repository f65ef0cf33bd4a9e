//! What a run leaves on the machine: mounts and loop devices. There should be none, and if a test fails they are
//! taken away all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Mounts and loop devices below a directory.
#[derive(Debug)]
pub(crate) struct Leftovers {
    directory: PathBuf,
}

impl Leftovers {
    /// Looks after what is below `directory`.
    pub(crate) fn below(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Fails if something is left.
    pub(crate) fn expect_none(&self) -> Result<()> {
        let (mounts, loops) = (self.mounts()?, self.loop_devices()?);
        ensure!(
            mounts.is_empty() && loops.is_empty(),
            "left on this machine: mounts {mounts:?}, loop devices {loops:?}"
        );
        Ok(())
    }

    /// Where something is mounted, innermost last.
    fn mounts(&self) -> Result<Vec<PathBuf>> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        Ok(points.filter(|point| point.starts_with(&self.directory)).collect())
    }

    /// Loop devices over files below the directory.
    fn loop_devices(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").context("read the block devices")? {
            let entry = entry?;
            // A device that has no backing file is a free one, or none of these.
            let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
            if Path::new(backing.trim_end()).starts_with(&self.directory) {
                found.push(Path::new("/dev").join(entry.file_name()));
            }
        }
        Ok(found)
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let run = |program: &str, options: &[&str], what: &Path| {
            let outcome = Command::new(program).args(options).arg(what).status();
            println!("left over: {}; {program}: {outcome:?}", what.display());
        };
        for mount in self.mounts().unwrap_or_default().iter().rev() {
            run("umount", &[], mount);
        }
        for device in self.loop_devices().unwrap_or_default() {
            run("losetup", &["-d"], &device);
        }
    }
}

//! What `tests/vm/prepare` left in `target/vm`. A test never goes on without it, or with a program that is older than
//! its sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

/// What to do when something is missing or old.
const REMEDY: &str = "run tests/vm/prepare (tests/all does)";

/// Where the sources of the programs in guests are, from the root of the tree.
const SOURCES: &[&str] =
    &["Cargo.lock", "proto", "src", "storage", "tests/vm-agent", "tests/src/vm/protocol.rs"];

/// Where QEMU's shared libraries and files are among the unpacked packages.
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const FIRMWARE: &[&str] = &["usr/share/qemu", "usr/share/seabios"];

/// A kernel that guests boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The stable release's, 6.1: after a refused reconnect it tries on until `ctrl_loss_tmo`.
    Old,
    /// The next release's, 6.12: it drops the NVMe controller at the first refusal.
    New,
}

impl Kernel {
    /// Its name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Old => "kernel-old",
            Self::New => "kernel-new",
        }
    }
}

/// The prepared directory.
#[derive(Debug, Clone)]
pub struct Artifacts {
    directory: PathBuf,
}

impl Artifacts {
    /// What was prepared, complete and not older than the sources.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests are in no tree")?;
        let found = Self { directory: root.join("target/vm") };
        for needed in [found.qemu(), found.busybox(), found.program("rds-csi"), found.program("vm-agent")] {
            ensure!(needed.is_file(), "{} is missing: {REMEDY}", needed.display());
        }
        for kernel in [Kernel::Old, Kernel::New] {
            found.kernel(kernel)?;
            found.modules(kernel)?;
        }
        let mut changed = SystemTime::UNIX_EPOCH;
        for source in SOURCES {
            changed = changed.max(newest_change(&root.join(source))?);
        }
        for program in ["rds-csi", "vm-agent"] {
            let built = fs::metadata(found.program(program))?.modified()?;
            ensure!(built >= changed, "{program} in target/vm is older than its sources: {REMEDY}");
        }
        Ok(found)
    }

    /// Where a lab has its files.
    pub(super) fn lab(&self) -> PathBuf {
        self.directory.join("lab")
    }

    /// Which emulator and which kernels these are, in a line.
    pub fn versions(&self) -> Result<String> {
        let path = self.directory.join("versions");
        let text = fs::read_to_string(&path).with_context(|| format!("{}: {REMEDY}", path.display()))?;
        Ok(text.lines().collect::<Vec<_>>().join(", "))
    }

    fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// The emulator.
    pub fn qemu(&self) -> PathBuf {
        self.programs().join("usr/bin/qemu-system-x86_64")
    }

    /// Where the emulator's libraries are, as `LD_LIBRARY_PATH` has it.
    pub fn libraries(&self) -> String {
        let paths = LIBRARIES.iter().map(|path| self.programs().join(path).display().to_string());
        paths.collect::<Vec<_>>().join(":")
    }

    /// Where the emulator's firmware is.
    pub fn firmware(&self) -> Vec<PathBuf> {
        FIRMWARE.iter().map(|path| self.programs().join(path)).collect()
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.programs().join("bin/busybox")
    }

    /// A static program of ours.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// The kernel's image.
    pub fn kernel(&self, kernel: Kernel) -> Result<PathBuf> {
        only_entry(&self.directory.join(kernel.name()).join("boot"), "vmlinuz-")
    }

    /// The kernel's modules.
    pub fn modules(&self, kernel: Kernel) -> Result<PathBuf> {
        let unpacked = self.directory.join(kernel.name());
        let found = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path));
        let directory = found.into_iter().find(|path| path.is_dir());
        only_entry(&directory.with_context(|| format!("{} has no modules: {REMEDY}", kernel.name()))?, "")
    }
}

fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("{} is missing: {REMEDY}", directory.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut found = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => anyhow::bail!("{} does not hold exactly one {prefix}*: {REMEDY}", directory.display()),
    }
}

fn newest_change(path: &Path) -> Result<SystemTime> {
    let meta = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    // A directory changes with what is made or removed in it.
    let mut newest = meta.modified()?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(newest_change(&entry?.path())?);
        }
    }
    Ok(newest)
}

//! The directory of a lab: disks, consoles, ledgers.
//!
//! Life cycle: it is claimed and emptied when a lab starts, for one lab at a time, and stays when the lab ends, however
//! that ended: to be looked at, and so that runs that are broken off do not pile up.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A claimed directory.
#[derive(Debug)]
pub(super) struct LabDirectory {
    path: PathBuf,
    /// The claim: the kernel takes it back when this process ends.
    _lock: File,
}

impl LabDirectory {
    /// Claims and empties `path`. If another lab has it, that is an error.
    pub(super) fn claim(path: PathBuf) -> Result<Self> {
        let lock_path = path.with_extension("lock");
        let lock = File::create(&lock_path).with_context(|| format!("open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another run of this test has {}", path.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", lock_path.display()));
            }
        }
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_for_one_lab_at_a_time_and_empty_for_the_next() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("lab");
        let first = LabDirectory::claim(path.clone()).unwrap();
        fs::write(first.path().join("disk"), "content").unwrap();
        let refused = LabDirectory::claim(path.clone()).unwrap_err();
        assert!(refused.to_string().contains("another run"), "{refused}");
        assert!(path.join("disk").exists(), "emptied under the first");
        drop(first);
        let second = LabDirectory::claim(path).unwrap();
        assert!(!second.path().join("disk").exists());
    }
}

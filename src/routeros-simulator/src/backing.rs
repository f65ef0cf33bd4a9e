//! The files behind the disks, and the file that the state is kept in.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::appliance::Contents;

/// Where each disk's file is a real sparse file, if anywhere.
#[derive(Debug)]
pub(crate) struct Backing {
    directory: Option<PathBuf>,
}

impl Backing {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    /// Makes the file `name` exist with exactly `size_bytes`.
    pub(crate) fn resize(&self, name: &str, size_bytes: u64) -> Result<(), String> {
        let Some(path) = self.path(name)? else { return Ok(()) };
        let resized = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            OpenOptions::new().create(true).truncate(false).write(true).open(&path)?.set_len(size_bytes)
        };
        resized().map_err(|error| report(name, &error))
    }

    /// Makes the file `name` be gone.
    pub(crate) fn remove(&self, name: &str) -> Result<(), String> {
        let Some(path) = self.path(name)? else { return Ok(()) };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(report(name, &error)),
            _ => Ok(()),
        }
    }

    /// Where `name` lives; never outside the directory.
    pub(crate) fn path(&self, name: &str) -> Result<Option<PathBuf>, String> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let name = Path::new(name);
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err("invalid parameter".to_owned());
        }
        Ok(Some(directory.join(name)))
    }
}

fn report(name: &str, error: &io::Error) -> String {
    tracing::warn!(name, %error, "simulated appliance cannot change a backing file");
    format!("failure: {error}")
}

/// Reads what [`save`] wrote; a missing file is an empty appliance.
pub(crate) fn load(path: Option<&Path>) -> io::Result<Contents> {
    let Some(path) = path else { return Ok(Contents::default()) };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contents::default()),
        Err(error) => Err(error),
    }
}

/// Replaces the state file in one step.
pub(crate) fn save(path: Option<&Path>, contents: &Contents) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec_pretty(contents).map_err(io::Error::other)?)?;
    fs::rename(next, path)
}

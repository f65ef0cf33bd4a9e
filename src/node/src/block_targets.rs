//! Which target paths a block volume is published at.
//!
//! A device node, unlike a mount, is in no table of the kernel's. So the staging directory, which a block volume
//! does not use otherwise, has a symbolic link to each target. A link says only where to look: what counts is
//! whether the volume's device is there, so a link too many (unpublishing does not learn the staging path) does
//! no harm and is cleared away later. It is made before the device node, so that none is missed.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs;
use uuid::Uuid;

use crate::fabric::Device;
use crate::mounts::MountError;
use crate::volumes::NodeVolumes;

/// The directory of links in the staging directory.
const LINKS: &str = "published";

/// The links of one volume.
#[derive(Debug, Default)]
pub(crate) struct BlockTargets {
    /// Targets that have the device.
    pub(crate) live: Vec<PathBuf>,
    /// Links to what is no target any more.
    stale: Vec<PathBuf>,
}

impl NodeVolumes {
    /// Where `device` is published as a block device.
    pub(crate) async fn block_targets(
        &self,
        staging: &Path,
        device: &Device,
    ) -> Result<BlockTargets, MountError> {
        let mut targets = BlockTargets::default();
        for link in self.links(staging).await? {
            let target = fs::read_link(&link).await.map_err(MountError::io("read link", &link))?;
            match self.mounts.block_target(&target).await {
                Ok(Some(found)) if found.device == device.id => targets.live.push(target),
                Ok(_) | Err(MountError::Foreign { .. }) => targets.stale.push(link),
                Err(error) => return Err(error),
            }
        }
        Ok(targets)
    }

    /// Links to `target`, which is about to be made.
    pub(crate) async fn remember_block_target(
        &self,
        staging: &Path,
        target: &Path,
        known: &BlockTargets,
    ) -> Result<(), MountError> {
        for stale in &known.stale {
            remove_if_there(stale).await?;
        }
        let directory = staging.join(LINKS);
        fs::create_dir_all(&directory).await.map_err(MountError::io("make directory", &directory))?;
        let name = Uuid::new_v5(&Uuid::NAMESPACE_URL, target.as_os_str().as_encoded_bytes());
        let link = directory.join(name.to_string());
        match fs::symlink(target, &link).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(MountError::io("make link", &link)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The links. There are none while a file system is mounted: what is there then belongs to its user.
    pub(crate) async fn links(&self, staging: &Path) -> Result<Vec<PathBuf>, MountError> {
        if self.mount_at(staging).await?.is_some() {
            return Ok(Vec::new());
        }
        let directory = staging.join(LINKS);
        let failed = |error| MountError::io("list", &directory)(error);
        let mut entries = match fs::read_dir(&directory).await {
            Ok(entries) => entries,
            Err(error) if is_not_there(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut links = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            links.push(entry.path());
        }
        Ok(links)
    }

    /// Clears the links away when the volume is unstaged.
    pub(crate) async fn forget_block_targets(&self, staging: &Path) -> Result<(), MountError> {
        for link in self.links(staging).await? {
            remove_if_there(&link).await?;
        }
        if self.mount_at(staging).await?.is_some() {
            return Ok(());
        }
        let directory = staging.join(LINKS);
        match fs::remove_dir(&directory).await {
            Err(error) if !is_not_there(&error) => Err(MountError::io("remove", &directory)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

async fn remove_if_there(link: &Path) -> Result<(), MountError> {
    match fs::remove_file(link).await {
        Err(error) if !is_not_there(&error) => Err(MountError::io("remove", link)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

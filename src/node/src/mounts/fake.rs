//! The fake mounts: a table of files, directories that stay what they are, plain files for block devices.
//!
//! A pod at a fake target writes to the directory itself; nothing reaches a volume. Tests play faults by writing to
//! the files: the second line of a fake file system's is what a check finds, and see [`Record`].

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use state_machine::{FsType, VolumeId};
use tokio::fs;
use uuid::Uuid;

use super::vitals::{stopped_by_options, usage_of};
use super::{BindOptions, BlockTarget, Content, Hold, MountEntry, MountError, MountOptions, Mounts, Usage};
use crate::fabric::{Device, DeviceId};
use crate::fake_machine::FakeMachine;

/// First line of a fake block target.
const BLOCK_TARGET_MARK: &str = "# fake block device";

/// What a file of the fake mount table says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    volume: VolumeId,
    path: PathBuf,
    fs_type: String,
    options: Vec<String>,
    read_only: bool,
    /// The mount is of an earlier device that had the number which the volume's has now.
    #[serde(default)]
    of_earlier_device: bool,
    /// How many errors the file system has logged.
    #[serde(default)]
    logged_errors: u64,
    /// Looking at it takes too long.
    #[serde(default)]
    hangs: bool,
}

/// What a fake block target says.
#[derive(Debug, Serialize, Deserialize)]
struct FakeTarget {
    volume: VolumeId,
    read_only: bool,
}

/// Mounts that are files.
#[derive(Debug, Clone)]
pub(crate) struct FakeMounts {
    machine: FakeMachine,
}

impl FakeMounts {
    /// The mounts of `machine`.
    pub(crate) fn new(machine: FakeMachine) -> Self {
        Self { machine }
    }

    fn record_file(&self, path: &Path) -> PathBuf {
        let name = Uuid::new_v5(&Uuid::NAMESPACE_URL, path.as_os_str().as_encoded_bytes());
        self.machine.mounts().join(name.to_string())
    }

    async fn write(&self, record: &Record) -> Result<(), MountError> {
        let failed = MountError::io("fake-mount", &record.path);
        let text = match toml::to_string(record) {
            Ok(text) => text,
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        self.machine.write(&self.record_file(&record.path), &text).await.map_err(failed)?;
        let Record { volume, path, fs_type, read_only, .. } = record;
        tracing::info!(%volume, path = %path.display(), fs_type, read_only, "fake mount made");
        Ok(())
    }

    async fn records(&self) -> Result<Vec<Record>, MountError> {
        let directory = self.machine.mounts();
        let mut records = Vec::new();
        for name in self.machine.names_in(&directory).await.map_err(MountError::io("list", &directory))? {
            let file = directory.join(name);
            match fs::read_to_string(&file).await {
                Ok(text) => records.push(
                    toml::from_str(&text)
                        .map_err(|error| MountError::io("parse", &file)(io::Error::other(error)))?,
                ),
                // Unmounted since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(MountError::io("read", &file)(error)),
            }
        }
        Ok(records)
    }

    async fn record_at(&self, path: &Path) -> Result<Record, MountError> {
        let found = self.records().await?.into_iter().find(|record| record.path == path);
        found.ok_or_else(|| MountError::io("find a fake mount at", path)(io::ErrorKind::NotFound.into()))
    }
}

#[async_trait]
impl Mounts for FakeMounts {
    async fn table(&self) -> Result<Vec<MountEntry>, MountError> {
        let entry = |record: Record| MountEntry {
            device: DeviceId::Fake(record.volume),
            root: "/".to_owned(),
            path: record.path,
            fs_type: record.fs_type,
            options: record.options,
            read_only: record.read_only,
        };
        Ok(self.records().await?.into_iter().map(entry).collect())
    }

    async fn hold(&self, _: &Device) -> Result<Hold, MountError> {
        // A fake device's path is its volume's for good.
        Ok(Hold { _open: None })
    }

    async fn content(&self, device: &Device) -> Result<Content, MountError> {
        let file = self.machine.formatted().join(device.volume.as_str());
        match fs::read_to_string(&file).await {
            Ok(text) => {
                let content = text.lines().next().unwrap_or_default();
                let known = FsType::parse(content).map(Content::FileSystem);
                Ok(known.unwrap_or_else(|| Content::Unclear(format!("fake content {content:?}"))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::Empty),
            Err(error) => Err(MountError::io("read", &file)(error)),
        }
    }

    async fn format(&self, device: &Device, fs_type: FsType, options: &[String]) -> Result<(), MountError> {
        let file = self.machine.formatted().join(device.volume.as_str());
        tracing::info!(volume = %device.volume, fs_type = fs_type.as_str(), ?options, "fake file system made");
        self.machine.write(&file, fs_type.as_str()).await.map_err(MountError::io("write", &file))
    }

    async fn check(&self, device: &Device, fs_type: FsType) -> Result<(), MountError> {
        let file = self.machine.formatted().join(device.volume.as_str());
        let text = fs::read_to_string(&file).await.map_err(MountError::io("read", &file))?;
        match text.lines().nth(1) {
            None => Ok(()),
            Some(complaint) => {
                let (path, complaint) = (device.path.clone(), complaint.to_owned());
                Err(MountError::Damaged { path, fs_type, complaint })
            }
        }
    }

    async fn is_claimed(&self, device: &Device) -> Result<bool, MountError> {
        let records = self.records().await?;
        Ok(records.iter().any(|record| record.volume == device.volume && !record.of_earlier_device))
    }

    async fn mount(&self, device: &Device, path: &Path, options: &MountOptions) -> Result<(), MountError> {
        let access = if options.read_only { "ro" } else { "rw" };
        self.write(&Record {
            volume: device.volume.clone(),
            path: path.to_path_buf(),
            fs_type: options.fs_type.as_str().to_owned(),
            options: [&[access.to_owned()], options.flags.as_slice()].concat(),
            read_only: options.read_only,
            of_earlier_device: false,
            logged_errors: 0,
            hangs: false,
        })
        .await
    }

    async fn bind(&self, from: &Path, to: &Path, options: &BindOptions) -> Result<(), MountError> {
        let source = self.record_at(from).await?;
        self.write(&Record { path: to.to_path_buf(), ..source }).await?;
        self.rebind(to, options).await
    }

    async fn rebind(&self, path: &Path, options: &BindOptions) -> Result<(), MountError> {
        let mut record = self.record_at(path).await?;
        if options.read_only && !record.read_only {
            record.read_only = true;
            record.options.insert(0, "ro".to_owned());
        }
        let missing = options.flags.iter().filter(|flag| !record.options.contains(flag)).cloned();
        let missing: Vec<_> = missing.collect();
        record.options.extend(missing);
        self.write(&record).await
    }

    async fn unmount(&self, path: &Path) -> Result<(), MountError> {
        fs::remove_file(self.record_file(path)).await.map_err(MountError::io("fake-unmount", path))?;
        tracing::info!(path = %path.display(), "fake mount taken away");
        Ok(())
    }

    async fn block_target(&self, path: &Path) -> Result<Option<BlockTarget>, MountError> {
        let foreign = || MountError::Foreign { path: path.to_path_buf(), what: "no fake block device" };
        match fs::symlink_metadata(path).await {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(foreign()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MountError::io("look at", path)(error)),
        }
        let text = fs::read_to_string(path).await.map_err(MountError::io("read", path))?;
        if !text.starts_with(BLOCK_TARGET_MARK) {
            return Err(foreign());
        }
        let FakeTarget { volume, read_only } = toml::from_str(&text).map_err(|_| foreign())?;
        Ok(Some(BlockTarget { device: DeviceId::Fake(volume), read_only }))
    }

    async fn make_block_target(
        &self,
        device: &Device,
        path: &Path,
        read_only: bool,
    ) -> Result<(), MountError> {
        let target = FakeTarget { volume: device.volume.clone(), read_only };
        let failed = MountError::io("make a fake block device at", path);
        let text = match toml::to_string(&target) {
            Ok(text) => format!("{BLOCK_TARGET_MARK}\n{text}"),
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        self.machine.write(path, &text).await.map_err(failed)
    }

    async fn usage(&self, path: &Path) -> Result<Usage, MountError> {
        if self.record_at(path).await?.hangs {
            return Err(MountError::OutOfTime { path: path.to_path_buf(), limit_ms: 0 });
        }
        // Of the real file system under the fake one.
        usage_of(path).map_err(MountError::io("measure", path))
    }

    async fn stopped(&self, entry: &MountEntry) -> Result<Option<String>, MountError> {
        Ok(stopped_by_options(entry))
    }

    async fn logged_errors(&self, device: &Device, _: FsType) -> Result<u64, MountError> {
        let records = self.records().await?.into_iter().filter(|record| record.volume == device.volume);
        Ok(records.map(|record| record.logged_errors).max().unwrap_or_default())
    }

    async fn grow(&self, device: &Device, _: &Path, fs_type: FsType) -> Result<(), MountError> {
        tracing::info!(volume = %device.volume, fs_type = fs_type.as_str(), "fake file system grown");
        Ok(())
    }
}

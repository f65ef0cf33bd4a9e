//! An appliance that is a map in memory, for tests of everything above a backend.
//!
//! Several [`Memory`] instances over one [`MemoryAppliance`] are several leaders at one appliance: the same fence
//! holds as on a real one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use state_machine::{AppliancePath, VolumeId};

use crate::error::BackendError;
use crate::fence::{FenceIssuer, FenceNumber};
use crate::{
    Backend, Capacity, Disk, DiskSpec, IsUnneeded, Presence, SLOT_PREFIX, file_path, volume_of_file,
};

#[derive(Debug)]
struct Contents {
    fence: FenceNumber,
    disks: BTreeMap<VolumeId, Disk>,
    /// Files without a disk.
    files: BTreeSet<String>,
    total_bytes: u64,
    is_reachable: bool,
}

impl Contents {
    fn free_bytes(&self) -> u64 {
        let used = self.disks.values().map(|disk| disk.size_bytes).fold(0, u64::saturating_add);
        self.total_bytes.saturating_sub(used)
    }
}

/// The appliance that [`Memory`] instances share.
#[derive(Debug, Clone)]
pub struct MemoryAppliance {
    contents: Arc<Mutex<Contents>>,
}

impl MemoryAppliance {
    /// An empty appliance with one pool of `total_bytes`.
    pub fn new(total_bytes: u64) -> Self {
        let contents = Contents {
            fence: FenceNumber::from_raw(0),
            disks: BTreeMap::new(),
            files: BTreeSet::new(),
            total_bytes,
            is_reachable: true,
        };
        Self { contents: Arc::new(Mutex::new(contents)) }
    }

    /// A backend for one leader.
    pub fn connect(&self) -> Memory {
        Memory { appliance: self.clone(), fence: FenceIssuer::default() }
    }

    /// Whether calls reach the appliance; while they do not they are [`BackendError::Unavailable`].
    pub fn set_reachable(&self, is_reachable: bool) {
        self.contents().is_reachable = is_reachable;
    }

    /// Puts a disk there, unchecked: for tests that need foreign or half-done ones.
    pub fn plant(&self, disk: Disk) {
        self.contents().disks.insert(disk.volume.clone(), disk);
    }

    /// Puts a file without a disk there.
    pub fn plant_file(&self, path: &str) {
        self.contents().files.insert(path.to_owned());
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self) -> Result<MutexGuard<'_, Contents>, BackendError> {
        let contents = self.contents();
        if contents.is_reachable { Ok(contents) } else { Err(BackendError::unavailable("made unreachable")) }
    }
}

/// One leader's view of a [`MemoryAppliance`].
#[derive(Debug)]
pub struct Memory {
    appliance: MemoryAppliance,
    fence: FenceIssuer,
}

impl Memory {
    /// The appliance's contents, once it has accepted this instance's next number.
    fn change(&self) -> Result<MutexGuard<'_, Contents>, BackendError> {
        let mut contents = self.appliance.reach()?;
        let mut number = self.fence.next()?;
        if number <= contents.fence {
            self.fence.refused(number, contents.fence)?;
            number = self.fence.next()?;
        }
        contents.fence = number;
        Ok(contents)
    }
}

/// A path is the same with and without its leading slash.
fn is_file_of(disk: &Disk, path: &str) -> bool {
    disk.file_path.trim_start_matches('/') == path.trim_start_matches('/')
}

#[async_trait]
impl Backend for Memory {
    fn for_another_term(&self) -> Arc<dyn Backend> {
        Arc::new(self.appliance.connect())
    }

    async fn begin_term(&self, term: u64) -> Result<(), BackendError> {
        self.fence.suspend();
        let first =
            FenceNumber::of_term(term).ok_or_else(|| BackendError::rejected("the term is too high"))?;
        let mut contents = self.appliance.reach()?;
        if contents.fence.term() > term {
            return Err(BackendError::StaleTerm { highest: contents.fence.term() });
        }
        contents.fence = contents.fence.max(first);
        self.fence.begin(contents.fence);
        Ok(())
    }

    async fn highest_term(&self) -> Result<u64, BackendError> {
        Ok(self.appliance.reach()?.fence.term())
    }

    async fn look(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<Presence, BackendError> {
        let contents = self.appliance.reach()?;
        Ok(match contents.disks.get(volume) {
            Some(disk) => Presence::Disk(disk.clone()),
            None if contents.files.contains(&file_path(directory, volume)) => Presence::FileOnly,
            None => Presence::Absent,
        })
    }

    async fn create(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let mut contents = self.change()?;
        if let Some(disk) = contents.disks.get(&spec.volume) {
            if let Some(reason) = disk.conflict_with(spec) {
                return Err(BackendError::conflict(reason));
            }
            if disk.size_bytes != spec.size.bytes() {
                return Err(BackendError::conflict(format!("slot {} has another size", spec.volume)));
            }
        } else {
            if contents.files.contains(&spec.file_path()) {
                return Err(BackendError::conflict(format!("the file {} exists already", spec.file_path())));
            }
            if contents.free_bytes() < spec.size.bytes() {
                return Err(BackendError::Full);
            }
        }
        let disk = Disk {
            volume: spec.volume.clone(),
            file_path: spec.file_path(),
            size_bytes: spec.size.bytes(),
            exported: true,
            nqn: Some(spec.nqn.clone()),
            nvme_port: Some(spec.nvme_port),
            mounted_by_appliance: false,
        };
        contents.disks.insert(spec.volume.clone(), disk);
        Ok(())
    }

    async fn export(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let mut contents = self.change()?;
        let Some(disk) = contents.disks.get_mut(&spec.volume) else {
            return Err(BackendError::conflict(format!("slot {} does not exist", spec.volume)));
        };
        if let Some(reason) = disk.conflict_with(spec) {
            return Err(BackendError::conflict(reason));
        }
        if disk.size_bytes < spec.size.bytes() {
            return Err(BackendError::conflict(format!("slot {} is too small", spec.volume)));
        }
        (disk.exported, disk.mounted_by_appliance) = (true, false);
        (disk.nqn, disk.nvme_port) = (Some(spec.nqn.clone()), Some(spec.nvme_port));
        Ok(())
    }

    async fn resize(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let mut contents = self.change()?;
        let free_bytes = contents.free_bytes();
        let Some(disk) = contents.disks.get_mut(&spec.volume) else {
            return Err(BackendError::conflict(format!("slot {} does not exist", spec.volume)));
        };
        if let Some(reason) = disk.conflict_with(spec) {
            return Err(BackendError::conflict(reason));
        }
        let Some(more) = spec.size.bytes().checked_sub(disk.size_bytes) else {
            return Err(BackendError::conflict(format!("slot {} is larger already", spec.volume)));
        };
        if more > free_bytes {
            return Err(BackendError::Full);
        }
        disk.size_bytes = spec.size.bytes();
        Ok(())
    }

    async fn remove(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<(), BackendError> {
        self.remove_unneeded(volume, directory, &|| true).await
    }

    async fn remove_unneeded(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
        is_unneeded: IsUnneeded<'_>,
    ) -> Result<(), BackendError> {
        let path = file_path(directory, volume);
        let mut contents = self.change()?;
        if !is_unneeded() {
            return Err(BackendError::conflict(format!("{volume} is needed after all")));
        }
        if let Some(disk) = contents.disks.get(volume)
            && disk.file_path != path
        {
            return Err(BackendError::conflict(format!("slot {volume} has the file {}", disk.file_path)));
        }
        if contents.disks.values().any(|disk| disk.volume != *volume && is_file_of(disk, &path)) {
            return Err(BackendError::conflict(format!("another slot uses the file {path}")));
        }
        contents.disks.remove(volume);
        contents.files.remove(&path);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Disk>, BackendError> {
        let contents = self.appliance.reach()?;
        let ours = |disk: &&Disk| disk.volume.as_str().starts_with(SLOT_PREFIX);
        Ok(contents.disks.values().filter(ours).cloned().collect())
    }

    async fn lone_files(&self, directory: &AppliancePath) -> Result<Vec<VolumeId>, BackendError> {
        let contents = self.appliance.reach()?;
        let is_used = |path: &str| contents.disks.values().any(|disk| is_file_of(disk, path));
        let lone = contents.files.iter().filter(|path| !is_used(path));
        Ok(lone.filter_map(|path| volume_of_file(path, directory)).collect())
    }

    async fn capacity(&self, _: &AppliancePath) -> Result<Capacity, BackendError> {
        let contents = self.appliance.reach()?;
        Ok(Capacity { total_bytes: contents.total_bytes, free_bytes: contents.free_bytes() })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.appliance.reach().map(drop)
    }
}

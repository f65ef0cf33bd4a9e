//! Appliances that hold volumes, behind one trait.
//!
//! [`Backend`] is what the controller knows of a storage appliance: make a disk and its export exist, grow it, make
//! it be gone, and look. [`RouterOs`] speaks to a MikroTik ROSE Data Server over SSH; [`Memory`] is a map, for tests
//! of everything above. Both pass the one suite in `tests/conformance`.
//!
//! Three rules hold for every backend (DESIGN.md, "Who does side effects"; STYLE.md, rules 7 and 8):
//!
//! - **Changes are fenced.** A leader begins its term on the appliance; from then on the appliance refuses changes of
//!   lower terms, and late duplicates of any change (see `fence`).
//! - **A lost answer is resolved by looking**, never by guessing.
//! - **Unknown is never absent.** [`Presence::Absent`] is a positive, well-formed answer; everything else that is not
//!   understood is an error.
//!
//! Life cycle: made from a config, which opens nothing; connections are opened when they are needed and again after
//! they fail; dropping it closes them.

mod error;
#[allow(missing_docs, reason = "reachable for the simulator of the chaos suite only")]
mod fence;
mod memory;
mod routeros;

use std::sync::Arc;

use async_trait::async_trait;
use state_machine::{AppliancePath, ByteSize, Nqn, VolumeId};

pub use error::BackendError;
pub use fence::MAX_TERM;
#[doc(hidden)]
pub use fence::{FenceIssuer, FenceNumber};
pub use memory::{Memory, MemoryAppliance};
pub use routeros::{ConfigErrors, RouterOs, RouterOsConfig};

#[doc(hidden)]
pub use routeros::fuzzing;

/// The disk that a volume needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The volume; its id is the disk's slot.
    pub volume: VolumeId,
    /// The directory of its file.
    pub directory: AppliancePath,
    /// Its exact size.
    pub size: ByteSize,
    /// The NQN of its subsystem.
    pub nqn: Nqn,
    /// The TCP port of its export.
    pub nvme_port: u16,
}

impl DiskSpec {
    /// The path of the disk's file.
    pub fn file_path(&self) -> String {
        file_path(&self.directory, &self.volume)
    }
}

/// The path of the file of `volume` in `directory`.
pub fn file_path(directory: &AppliancePath, volume: &VolumeId) -> String {
    format!("{directory}/{volume}{FILE_SUFFIX}")
}

/// Whether something on an appliance is still unneeded.
pub type IsUnneeded<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// A disk as the appliance has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its slot.
    pub volume: VolumeId,
    /// Its file, with a leading `/`.
    pub file_path: String,
    /// Its exact size, in bytes.
    pub size_bytes: u64,
    /// Whether it is exported over NVMe/TCP.
    pub exported: bool,
    /// The NQN of its subsystem; `None` where there is none or it is no NQN.
    pub nqn: Option<Nqn>,
    /// The port of its export, where the appliance says one.
    pub nvme_port: Option<u16>,
    /// Whether the appliance mounts the file system in it, or may: such a volume is in danger.
    pub mounted_by_appliance: bool,
}

impl Disk {
    /// Whether nodes can connect to this disk, and nobody else writes to it.
    pub fn is_served(&self) -> bool {
        self.exported && !self.mounted_by_appliance
    }

    /// The directory of its file, if that is named as [`Backend::create`] names it.
    pub fn directory(&self) -> Option<AppliancePath> {
        let name = format!("/{}{FILE_SUFFIX}", self.volume);
        AppliancePath::parse(self.file_path.strip_suffix(&name)?).ok()
    }

    /// What of `spec` this disk is not and can never become; `None` if it is the disk that `spec` describes, perhaps
    /// half done or smaller.
    pub fn conflict_with(&self, spec: &DiskSpec) -> Option<String> {
        let volume = &self.volume;
        if self.volume != spec.volume {
            return Some(format!("slot {volume} is not {}", spec.volume));
        }
        if self.file_path != spec.file_path() {
            return Some(format!("slot {volume} has the file {}, not {}", self.file_path, spec.file_path()));
        }
        if self.exported && self.nqn.as_ref() != Some(&spec.nqn) {
            let found = self.nqn.as_ref().map_or("no NQN", Nqn::as_str);
            return Some(format!("slot {volume} is exported as {found}, not as {}", spec.nqn));
        }
        if self.exported && self.nvme_port != Some(spec.nvme_port) {
            return Some(format!("slot {volume} is exported on another port than {}", spec.nvme_port));
        }
        None
    }
}

/// What an appliance has of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Neither disk nor file, positively.
    Absent,
    /// The file is there, no disk is: what is left when a removal stops half-way.
    FileOnly,
    /// The slot is taken by this disk, whose file may be another one.
    Disk(Disk),
}

/// Room on an appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The pool's size, in bytes.
    pub total_bytes: u64,
    /// What is free of it, in bytes.
    pub free_bytes: u64,
}

/// A storage appliance.
///
/// All methods may be called at the same time. Callers may drop the future of a call; what the call was doing is then
/// unknown, as after a lost answer, and a later call settles it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Another instance at the same appliance, in which no term has begun.
    ///
    /// Each leadership takes one of its own: what an earlier one of this process still has in flight then goes out
    /// under its own term, whenever it does, and is refused.
    fn for_another_term(&self) -> Arc<dyn Backend>;

    /// A new leader's first act: from here on the appliance refuses changes of lower terms, and this instance makes
    /// its changes under `term`. Beginning the same term again is fine. Fails with [`BackendError::StaleTerm`] if a
    /// later one has begun; until it succeeds this instance changes nothing.
    async fn begin_term(&self, term: u64) -> Result<(), BackendError>;

    /// The highest term that any leader, of whatever cluster, has begun on the appliance; 0 if none has. Changes nothing.
    async fn highest_term(&self) -> Result<u64, BackendError>;

    /// What the appliance has of `volume`, whose file would be in `directory`. [`BackendError::Conflict`] if the slot
    /// is taken by something that is no file-backed disk.
    async fn look(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<Presence, BackendError>;

    /// Makes the disk and its export exist exactly as specified, and finishes one that is half done. Idempotent.
    /// [`BackendError::Conflict`], and no change, if the slot or the file is taken by something else.
    async fn create(&self, spec: &DiskSpec) -> Result<(), BackendError>;

    /// Makes the disk that is there exported as specified, and never makes one: [`BackendError::Conflict`], and no
    /// change, if it is missing, smaller than `spec.size` or another one. Idempotent.
    async fn export(&self, spec: &DiskSpec) -> Result<(), BackendError>;

    /// Makes the disk have `spec.size`. Idempotent; never shrinks. [`BackendError::Conflict`], and no change, if the
    /// disk is missing, larger or another one.
    async fn resize(&self, spec: &DiskSpec) -> Result<(), BackendError>;

    /// Makes disk and file be gone. Idempotent. [`BackendError::Conflict`], and no change, if the slot is taken by a
    /// disk with another file.
    async fn remove(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<(), BackendError>;

    /// The same for what nobody is known to need. `is_unneeded` is asked again after the number of each attempt is
    /// drawn and before it is sent: whoever makes the volume after that answer does so with a higher number, so that
    /// the removal comes first or not at all. [`BackendError::Conflict`], and nothing more is sent, once it says no.
    async fn remove_unneeded(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
        is_unneeded: IsUnneeded<'_>,
    ) -> Result<(), BackendError>;

    /// All disks whose slot looks like one of ours (`pvc-...`), foreign ones too: the ledger says whose they are.
    /// Sorted by volume.
    async fn list(&self) -> Result<Vec<Disk>, BackendError>;

    /// The volumes whose files are in `directory`, as [`Backend::create`] names them, while no disk uses the file,
    /// whatever its slot. Sorted.
    async fn lone_files(&self, directory: &AppliancePath) -> Result<Vec<VolumeId>, BackendError>;

    /// Room in the pool that `directory` is in.
    async fn capacity(&self, directory: &AppliancePath) -> Result<Capacity, BackendError>;

    /// One cheap round trip.
    async fn probe(&self) -> Result<(), BackendError>;
}

/// What the slots of our volumes begin with.
pub(crate) const SLOT_PREFIX: &str = "pvc-";
/// What their files end with.
pub(crate) const FILE_SUFFIX: &str = ".img";

/// The volume whose file in `directory` is at `path`, if it is one that the driver could have made.
pub(crate) fn volume_of_file(path: &str, directory: &AppliancePath) -> Option<VolumeId> {
    let name = path.trim_start_matches('/').strip_prefix(directory.as_str().trim_start_matches('/'))?;
    let slot = name.strip_prefix('/')?.strip_suffix(FILE_SUFFIX)?;
    VolumeId::parse(slot).ok().filter(|_| slot.starts_with(SLOT_PREFIX))
}

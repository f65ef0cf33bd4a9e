//! A MikroTik ROSE Data Server (RouterOS 7) over SSH.
//!
//! A change goes: look; send one script that compares the fence, stores it and acts; look again. Looking decides,
//! whatever the answer was: a lost one, a refusal, a success. If the change is not there and may yet be made, it is
//! sent again with a higher number, within the call's time. Changes go one at a time: numbers arrive in order, and no
//! two scripts of one leader are ever answered by each other. Reads do not wait for them.
//!
//! Reading prefers JSON (`:serialize`), and parses the human form where the appliance does not know it.
//!
//! **Never tried on hardware**: the fence (script objects, `:tonum`, the comparison), that two scripts do not
//! interleave, conditions with `and` and `or`, growing an exported disk with `set file-size`. The simulator does what
//! is documented. Should scripts interleave on hardware, an add that has passed its comparison and is still running
//! could outlive a removal that runs at the same time.
//!
//! - `script`: builds commands, the only place that does
//! - `session`: SSH
//! - `answer`, `parse`: what came back
//! - `config`: settings

mod answer;
mod config;
pub mod fuzzing;
mod parse;
mod script;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use state_machine::{AppliancePath, VolumeId};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub use config::{ConfigErrors, RouterOsConfig};

use crate::error::BackendError;
use crate::fence::{FenceIssuer, FenceNumber};
use crate::{Backend, Capacity, Disk, DiskSpec, IsUnneeded, Presence, file_path};
use answer::ChangeAnswer;
use config::Settings;
use parse::{ParseError, Record, SlotContent};
use script::Query;
use session::{AskError, Session};

/// How often a change is sent at most.
const CHANGE_ATTEMPTS: u32 = 8;
/// How often a read or the beginning of a term is sent at most, where the connection drops.
const READ_ATTEMPTS: u32 = 3;
/// Pause before a change whose answer was lost is sent again, in ms.
const RETRY_PAUSE_MS: u64 = 50;

/// What the appliance speaks when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// It knows `:serialize`.
    Json,
    /// Text for people.
    Human,
}

/// A RouterOS appliance.
pub struct RouterOs {
    settings: Arc<Settings>,
    session: Arc<Session>,
    fence: FenceIssuer,
    /// Held while a change is under way.
    changing: Arc<Mutex<()>>,
}

/// What looking says about a change.
enum Verdict {
    Done,
    NotYet,
    Conflict(String),
}

impl RouterOs {
    /// Checks the config and reads the key files; opens nothing.
    pub fn new(config: RouterOsConfig) -> Result<Self, ConfigErrors> {
        Self::telling(config, |_, _| ())
    }

    /// The same, and tells of each attempt to connect: whether it succeeded, and how long it took.
    pub fn telling(
        config: RouterOsConfig,
        attempted: impl Fn(bool, Duration) + Send + Sync + 'static,
    ) -> Result<Self, ConfigErrors> {
        let settings = Arc::new(Settings::check(config)?);
        let session = Arc::new(Session::new(settings.clone(), Arc::new(attempted)));
        Ok(Self { settings, session, fence: FenceIssuer::default(), changing: Arc::default() })
    }

    /// Asks until an answer is parsed, or says why not.
    async fn read(&self, query: Query<'_>) -> Result<Vec<Record>, BackendError> {
        let mut attempt = 1;
        loop {
            let asked =
                self.session.ask_either(self.settings.read_timeout, |dialect| query.script(dialect)).await;
            match asked {
                Ok((dialect, answer)) => {
                    return parse::records(dialect, &answer.stdout).map_err(|error| {
                        answer.known_refusal().unwrap_or_else(|| BackendError::unavailable(error.to_string()))
                    });
                }
                Err(AskError::Lost(reason)) if attempt < READ_ATTEMPTS => {
                    tracing::debug!(reason, attempt, "the answer to a read was lost");
                    attempt += 1;
                }
                Err(error) => return Err(BackendError::unavailable(error.to_string())),
            }
        }
    }

    /// The disk in the slot of `volume`, if there is one.
    async fn look_at_slot(&self, volume: &VolumeId) -> Result<Option<Disk>, BackendError> {
        let records = self.read(Query::Slot(volume)).await?;
        match parse::disk_in_slot(&records, volume).map_err(not_understood)? {
            SlotContent::Disk(disk) => Ok(Some(disk)),
            SlotContent::OtherType(kind) => {
                Err(BackendError::conflict(format!("slot {volume} is taken by a disk of type {kind}")))
            }
            SlotContent::Nothing => Ok(None),
        }
    }

    /// Sends a change until looking says that it is done, and says why not otherwise.
    async fn change(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
        script: impl Fn(FenceNumber) -> Result<String, BackendError> + Send + Sync,
        judge: impl Fn(&Presence) -> Verdict + Send + Sync,
    ) -> Result<(), BackendError> {
        let deadline = Instant::now() + self.settings.operation_timeout;
        if let Verdict::Conflict(reason) = judge(&self.look(volume, directory).await?) {
            return Err(BackendError::Conflict { reason });
        }
        let term = self.fence.term()?;
        for attempt in 1..=CHANGE_ATTEMPTS {
            let refusal = match self.send(term, deadline, &script).await? {
                ChangeAnswer::Done => None,
                ChangeAnswer::Stale(_) => continue,
                ChangeAnswer::Refused(error) => Some(error),
            };
            match (judge(&self.look(volume, directory).await?), refusal) {
                (Verdict::Done, _) => return Ok(()),
                (Verdict::Conflict(reason), _) => return Err(BackendError::Conflict { reason }),
                (Verdict::NotYet, None) => {
                    return Err(BackendError::rejected("it says that it is done, but it is not"));
                }
                (Verdict::NotYet, Some(BackendError::Unavailable { reason }))
                    if Instant::now() < deadline =>
                {
                    tracing::debug!(%volume, reason, attempt, "a change is not there, sending it again");
                }
                (Verdict::NotYet, Some(error)) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(RETRY_PAUSE_MS)).await;
        }
        Err(BackendError::unavailable(format!("the change did not get through in {CHANGE_ATTEMPTS} tries")))
    }

    /// Sends a change once, with the next number of `term`. A lost answer is a refusal of the unavailable kind; an
    /// error is one that leaves nothing to look for.
    async fn send(
        &self,
        term: u64,
        deadline: Instant,
        script: impl Fn(FenceNumber) -> Result<String, BackendError> + Send + Sync,
    ) -> Result<ChangeAnswer, BackendError> {
        let _turn = tokio::time::timeout_at(deadline, self.changing.lock())
            .await
            .map_err(|_| BackendError::unavailable("other changes took all the time"))?;
        let number = self.fence.next()?;
        if number.term() != term {
            // A call does not outlive the term that it began under.
            return Err(BackendError::StaleTerm { highest: number.term() });
        }
        let limit = self.settings.change_timeout.min(deadline.saturating_duration_since(Instant::now()));
        match self.session.ask(&script(number)?, limit).await {
            Err(AskError::NotSent(reason)) => Err(BackendError::Unavailable { reason }),
            Err(AskError::Lost(reason)) => Ok(ChangeAnswer::Refused(BackendError::Unavailable { reason })),
            Ok(answer) => {
                let meaning = answer.of_change();
                if let ChangeAnswer::Stale(stored) = meaning {
                    self.fence.refused(number, stored)?;
                }
                Ok(meaning)
            }
        }
    }
}

fn not_understood(error: ParseError) -> BackendError {
    BackendError::unavailable(error.to_string())
}

#[async_trait]
impl Backend for RouterOs {
    fn for_another_term(&self) -> Arc<dyn Backend> {
        Arc::new(Self {
            settings: self.settings.clone(),
            session: self.session.clone(),
            fence: FenceIssuer::default(),
            changing: self.changing.clone(),
        })
    }

    async fn begin_term(&self, term: u64) -> Result<(), BackendError> {
        self.fence.suspend();
        let first =
            FenceNumber::of_term(term).ok_or_else(|| BackendError::rejected("the term is too high"))?;
        let script = script::begin_term(&self.settings.fence, first);
        let mut attempt = 1;
        let answer = loop {
            match self.session.ask(&script, self.settings.change_timeout).await {
                Ok(answer) => break answer,
                // Beginning a term twice is the same as once.
                Err(AskError::Lost(reason)) if attempt < READ_ATTEMPTS => {
                    tracing::debug!(reason, attempt, "the answer to a new term was lost");
                    attempt += 1;
                }
                Err(error) => return Err(BackendError::unavailable(error.to_string())),
            }
        };
        let stored = answer.of_begin()?;
        if stored.term() > term {
            return Err(BackendError::StaleTerm { highest: stored.term() });
        }
        if stored < first {
            return Err(BackendError::rejected("the fence did not take the new term"));
        }
        self.fence.begin(stored);
        tracing::info!(term, "the appliance has accepted the term");
        Ok(())
    }

    async fn highest_term(&self) -> Result<u64, BackendError> {
        let script = script::show_fence(&self.settings.fence);
        let asked = self.session.ask(&script, self.settings.read_timeout).await;
        let answer = asked.map_err(|error| BackendError::unavailable(error.to_string()))?;
        Ok(answer.of_begin()?.term())
    }

    async fn look(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<Presence, BackendError> {
        if let Some(disk) = self.look_at_slot(volume).await? {
            return Ok(Presence::Disk(disk));
        }
        let files = self.read(Query::File(directory, volume)).await?;
        let found = parse::has_file(&files, &script::file_name(directory, volume)).map_err(not_understood)?;
        if !found {
            return Ok(Presence::Absent);
        }
        // Disk and file appear together: a file that came since the slot was empty has its disk by now.
        Ok(self.look_at_slot(volume).await?.map_or(Presence::FileOnly, Presence::Disk))
    }

    async fn create(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent => Verdict::NotYet,
            Presence::FileOnly => {
                Verdict::Conflict(format!("the file {} exists without its disk", spec.file_path()))
            }
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes != spec.size.bytes() => Verdict::Conflict(format!(
                    "slot {} has {} bytes, not {}",
                    spec.volume, disk.size_bytes, spec.size
                )),
                None if disk.is_served() => Verdict::Done,
                None => Verdict::NotYet,
            },
        };
        let script = |number| Ok(script::create(&self.settings.fence, number, spec));
        self.change(&spec.volume, &spec.directory, script, judge).await
    }

    async fn export(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent | Presence::FileOnly => {
                Verdict::Conflict(format!("slot {} does not exist", spec.volume))
            }
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes < spec.size.bytes() => Verdict::Conflict(format!(
                    "slot {} has {} bytes, fewer than {}",
                    spec.volume, disk.size_bytes, spec.size
                )),
                None if disk.is_served() => Verdict::Done,
                None => Verdict::NotYet,
            },
        };
        let script = |number| Ok(script::export(&self.settings.fence, number, spec));
        self.change(&spec.volume, &spec.directory, script, judge).await
    }

    async fn resize(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent | Presence::FileOnly => {
                Verdict::Conflict(format!("slot {} does not exist", spec.volume))
            }
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes > spec.size.bytes() => {
                    Verdict::Conflict(format!("slot {} has {} bytes already", spec.volume, disk.size_bytes))
                }
                None if disk.size_bytes < spec.size.bytes() => Verdict::NotYet,
                None => Verdict::Done,
            },
        };
        let script = |number| Ok(script::resize(&self.settings.fence, number, spec));
        self.change(&spec.volume, &spec.directory, script, judge).await
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
        let judge = |presence: &Presence| match presence {
            Presence::Absent => Verdict::Done,
            Presence::FileOnly => Verdict::NotYet,
            Presence::Disk(disk) if disk.file_path == path => Verdict::NotYet,
            Presence::Disk(disk) => {
                Verdict::Conflict(format!("slot {volume} has the file {}, not {path}", disk.file_path))
            }
        };
        let script = |number| {
            if !is_unneeded() {
                return Err(BackendError::conflict(format!("{volume} is needed after all")));
            }
            Ok(script::remove(&self.settings.fence, number, volume, directory))
        };
        self.change(volume, directory, script, judge).await
    }

    async fn list(&self) -> Result<Vec<Disk>, BackendError> {
        let records = self.read(Query::OurSlots).await?;
        parse::our_disks(&records).map_err(not_understood)
    }

    async fn lone_files(&self, directory: &AppliancePath) -> Result<Vec<VolumeId>, BackendError> {
        // Files first: a disk and its file appear together.
        let files = self.read(Query::FilesIn(directory)).await?;
        let disks = self.read(Query::DisksIn(directory)).await?;
        parse::lone_files(&files, &disks, directory).map_err(not_understood)
    }

    async fn capacity(&self, directory: &AppliancePath) -> Result<Capacity, BackendError> {
        let records = self.read(Query::Pool(directory)).await?;
        parse::capacity(&records)
            .map_err(not_understood)?
            .ok_or_else(|| BackendError::rejected(format!("no pool is mounted where {directory} is")))
    }

    async fn probe(&self) -> Result<(), BackendError> {
        let asked = self.session.ask(&script::probe(), self.settings.read_timeout).await;
        let answer = asked.map_err(|error| BackendError::unavailable(error.to_string()))?;
        match answer.of_change() {
            ChangeAnswer::Done => Ok(()),
            ChangeAnswer::Stale(_) | ChangeAnswer::Refused(_) => Err(answer.error()),
        }
    }
}

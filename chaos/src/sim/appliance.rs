//! The simulated appliance, and the hand of a leader on it.
//!
//! A changing script bears a number; the appliance compares and keeps it in the same step as it acts, and refuses what
//! is not greater than everything before (`src/backend/src/fence.rs`). [`SimBackend`] sends as the RouterOS backend does:
//! look, change, look again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backend::{
    Backend, BackendError, Capacity, Disk, DiskSpec, FenceIssuer, FenceNumber, IsUnneeded, Presence,
};
use planted::Bug;
use state_machine::{AppliancePath, Nqn, VolumeId};
use tokio::sync::oneshot;

use super::network::Endpoint;
use super::runtime::{WORLD, random, sleep, sleep_ms, spawn_in, timeout};
use super::world::World;
use crate::history::ApplianceChange;

/// How long a script takes, in ms.
const SCRIPT_MS: (u64, u64) = (5, 60);
/// How long a script is waited for.
const SCRIPT_LIMIT: Duration = Duration::from_secs(10);
/// How often a change is sent at most.
const CHANGE_ATTEMPTS: u32 = 8;
/// Pause before a change whose answer was lost is sent again, in ms.
const RETRY_PAUSE_MS: u64 = 50;
/// How late a second execution comes at most, in ms.
const LATE_EXECUTION_MS: u64 = 40_000;
/// Room, in bytes.
const TOTAL_BYTES: u64 = 1 << 44;

/// A disk, as the appliance has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SimDisk {
    size_bytes: u64,
    nqn: Option<Nqn>,
    port: u16,
    file_path: String,
}

/// What is wrong with the appliance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ApplianceTrouble {
    /// It answers nothing, and does nothing.
    pub(crate) hangs: bool,
    /// It is starting again.
    pub(crate) is_down: bool,
    /// Scripts whose answer is lost, of a thousand.
    pub(crate) answer_lost_per_mille: u64,
    /// Creations that stop before the export, of a thousand.
    pub(crate) half_done_per_mille: u64,
    /// Scripts that are executed once more, late, of a thousand.
    pub(crate) twice_per_mille: u64,
    /// Scripts that arrive late, of a thousand.
    pub(crate) late_per_mille: u64,
}

#[derive(Debug, Default)]
struct Contents {
    /// The highest number accepted.
    fence: u64,
    disks: BTreeMap<VolumeId, SimDisk>,
    trouble: ApplianceTrouble,
    /// Counts restarts: what was under way before one is lost.
    starts: u64,
}

/// The appliance.
#[derive(Debug, Default)]
pub(crate) struct Appliance {
    contents: Mutex<Contents>,
}

/// One script, with its number where it changes something.
#[derive(Debug, Clone)]
enum Script {
    BeginTerm(FenceNumber),
    Look(VolumeId),
    Create(FenceNumber, DiskSpec),
    Export(FenceNumber, DiskSpec),
    Resize(FenceNumber, DiskSpec),
    Remove(FenceNumber, VolumeId),
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Done,
    /// The number was not greater than this.
    Stale(u64),
    Refused(String),
    Seen(Presence),
}

impl Appliance {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wrong with it.
    pub(crate) fn trouble(&self, change: impl FnOnce(&mut ApplianceTrouble)) {
        change(&mut self.contents().trouble);
    }

    /// It starts again: what was under way is lost.
    pub(crate) fn restart(&self) {
        self.contents().starts += 1;
    }

    /// Whether nodes can connect to the volume now.
    pub(crate) fn serves(&self, volume: &VolumeId) -> bool {
        let contents = self.contents();
        let is_up = !contents.trouble.hangs && !contents.trouble.is_down;
        is_up && contents.disks.get(volume).is_some_and(|disk| disk.nqn.is_some())
    }

    /// Every volume: its size and whether it is exported.
    pub(crate) fn volumes(&self) -> BTreeMap<String, (u64, bool)> {
        let contents = self.contents();
        let volumes = contents.disks.iter();
        volumes.map(|(id, disk)| (id.to_string(), (disk.size_bytes, disk.nqn.is_some()))).collect()
    }
}

impl Contents {
    fn presence(&self, volume: &VolumeId) -> Presence {
        match self.disks.get(volume) {
            None => Presence::Absent,
            Some(disk) => Presence::Disk(Disk {
                volume: volume.clone(),
                file_path: disk.file_path.clone(),
                size_bytes: disk.size_bytes,
                exported: disk.nqn.is_some(),
                nqn: disk.nqn.clone(),
                nvme_port: Some(disk.port),
                mounted_by_appliance: false,
            }),
        }
    }
}

impl World {
    /// Executes a script; what changed is recorded.
    fn execute(&self, script: &Script) -> Answer {
        let mut contents = self.appliance.contents();
        let number = match script {
            Script::Look(volume) => return Answer::Seen(contents.presence(volume)),
            Script::BeginTerm(number) => {
                contents.fence = contents.fence.max(number.raw());
                return Answer::Stale(contents.fence);
            }
            Script::Create(number, _)
            | Script::Export(number, _)
            | Script::Resize(number, _)
            | Script::Remove(number, _) => *number,
        };
        if number.raw() <= contents.fence && !planted::is(Bug::NoFence) {
            return Answer::Stale(contents.fence);
        }
        contents.fence = number.raw();
        let half_done = contents.trouble.half_done_per_mille;
        let mut changes = Vec::new();
        let answer = match script {
            Script::Create(_, spec) => {
                let stops = random(|rng| rng.per_mille(half_done));
                create(&mut contents, spec, stops, &mut changes)
            }
            Script::Export(_, spec) => export(&mut contents, spec, &mut changes),
            Script::Resize(_, spec) => resize(&mut contents, spec, &mut changes),
            Script::Remove(_, volume) => {
                if contents.disks.remove(volume).is_some() {
                    changes.extend([ApplianceChange::Unexported, ApplianceChange::Removed]);
                }
                Answer::Done
            }
            Script::BeginTerm(_) | Script::Look(_) => Answer::Done,
        };
        drop(contents);
        let volume = match script {
            Script::Create(_, spec) | Script::Export(_, spec) | Script::Resize(_, spec) => &spec.volume,
            Script::Remove(_, volume) | Script::Look(volume) => volume,
            Script::BeginTerm(_) => return answer,
        };
        for change in changes {
            self.record_mutation(number, volume, change);
        }
        answer
    }
}

fn create(
    contents: &mut Contents,
    spec: &DiskSpec,
    stops: bool,
    changes: &mut Vec<ApplianceChange>,
) -> Answer {
    let is_new = !contents.disks.contains_key(&spec.volume);
    let disk = contents.disks.entry(spec.volume.clone()).or_insert_with(|| SimDisk {
        size_bytes: spec.size.bytes(),
        nqn: None,
        port: spec.nvme_port,
        file_path: spec.file_path(),
    });
    if is_new {
        changes.push(ApplianceChange::Created);
    }
    if stops {
        return Answer::Refused("interrupted".to_owned());
    }
    if disk.nqn.is_none() {
        disk.nqn = Some(spec.nqn.clone());
        changes.push(ApplianceChange::Exported);
    }
    Answer::Done
}

fn export(contents: &mut Contents, spec: &DiskSpec, changes: &mut Vec<ApplianceChange>) -> Answer {
    let Some(disk) = contents.disks.get_mut(&spec.volume) else {
        return Answer::Refused("no such item".to_owned());
    };
    if disk.nqn.is_none() {
        disk.nqn = Some(spec.nqn.clone());
        changes.push(ApplianceChange::Exported);
    }
    Answer::Done
}

fn resize(contents: &mut Contents, spec: &DiskSpec, changes: &mut Vec<ApplianceChange>) -> Answer {
    let Some(disk) = contents.disks.get_mut(&spec.volume) else {
        return Answer::Refused("no such item".to_owned());
    };
    if disk.size_bytes != spec.size.bytes() {
        disk.size_bytes = spec.size.bytes();
        changes.push(ApplianceChange::Grown);
    }
    Answer::Done
}

/// One leader's hand on the appliance.
pub(crate) struct SimBackend {
    world: Arc<World>,
    place: usize,
    fence: FenceIssuer,
    changing: tokio::sync::Mutex<()>,
}

/// What looking says about a change.
enum Verdict {
    Done,
    NotYet,
    Conflict(String),
}

fn unavailable(reason: &str) -> BackendError {
    BackendError::Unavailable { reason: reason.to_owned() }
}

impl SimBackend {
    /// The hand of the replica in a place.
    pub(crate) fn new(world: Arc<World>, place: usize) -> Self {
        Self { world, place, fence: FenceIssuer::default(), changing: tokio::sync::Mutex::default() }
    }

    /// Sends a script; an error is a lost answer.
    async fn ask(&self, script: Script) -> Result<Answer, BackendError> {
        let (sender, answer) = oneshot::channel();
        let (world, from) = (self.world.clone(), Endpoint::Replica(self.place));
        let trouble = world.appliance.contents().trouble;
        if random(|rng| rng.per_mille(trouble.twice_per_mille)) {
            let (world, script) = (world.clone(), script.clone());
            spawn_in(WORLD, async move {
                sleep_ms(random(|rng| rng.below(LATE_EXECUTION_MS))).await;
                world.run_script(from, script).await;
            });
        }
        spawn_in(WORLD, async move {
            if random(|rng| rng.per_mille(trouble.late_per_mille)) {
                sleep_ms(random(|rng| rng.below(LATE_EXECUTION_MS))).await;
            }
            let answer = world.run_script(from, script).await;
            let lost_per_mille = world.appliance.contents().trouble.answer_lost_per_mille;
            let is_lost = random(|rng| rng.per_mille(lost_per_mille));
            match answer {
                Some(answer) if !is_lost && world.carry(Endpoint::Appliance, from).await => {
                    let _ = sender.send(answer);
                }
                Some(_) | None => sleep(SCRIPT_LIMIT).await,
            }
        });
        match timeout(SCRIPT_LIMIT, answer).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) | None => Err(unavailable("the answer is lost")),
        }
    }

    async fn change(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
        script: impl Fn(FenceNumber) -> Script + Send + Sync,
        judge: impl Fn(&Presence) -> Verdict + Send + Sync,
    ) -> Result<(), BackendError> {
        if let Verdict::Conflict(reason) = judge(&self.look(volume, directory).await?) {
            return Err(BackendError::Conflict { reason });
        }
        let term = self.fence.term()?;
        for _ in 0..CHANGE_ATTEMPTS {
            let sent = {
                let _turn = self.changing.lock().await;
                let number = self.fence.next()?;
                if number.term() != term {
                    return Err(BackendError::StaleTerm { highest: number.term() });
                }
                let sent = self.ask(script(number)).await;
                if let Ok(Answer::Stale(stored)) = sent {
                    self.fence.refused(number, FenceNumber::from_raw(stored))?;
                    continue;
                }
                sent
            };
            let refusal = match sent {
                Ok(Answer::Refused(words)) => Some(unavailable(&words)),
                Ok(Answer::Done | Answer::Stale(_) | Answer::Seen(_)) => None,
                Err(error) => Some(error),
            };
            match (judge(&self.look(volume, directory).await?), refusal) {
                (Verdict::Done, _) => return Ok(()),
                (Verdict::Conflict(reason), _) => return Err(BackendError::Conflict { reason }),
                (Verdict::NotYet, None) => {
                    return Err(BackendError::Rejected { words: "done, but it is not".to_owned() });
                }
                (Verdict::NotYet, Some(_)) => sleep_ms(RETRY_PAUSE_MS).await,
            }
        }
        Err(unavailable("the change did not get through"))
    }
}

impl World {
    /// Carries a script to the appliance and has it executed; none if it does not get that far.
    async fn run_script(&self, from: Endpoint, script: Script) -> Option<Answer> {
        if !self.carry(from, Endpoint::Appliance).await {
            return None;
        }
        let starts = self.appliance.contents().starts;
        sleep_ms(random(|rng| rng.between(SCRIPT_MS.0, SCRIPT_MS.1))).await;
        while self.appliance.contents().trouble.hangs {
            sleep_ms(SCRIPT_MS.1).await;
        }
        {
            let contents = self.appliance.contents();
            if contents.trouble.is_down || contents.starts != starts {
                return None;
            }
        }
        Some(self.execute(&script))
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn for_another_term(&self) -> Arc<dyn Backend> {
        Arc::new(Self::new(self.world.clone(), self.place))
    }

    async fn begin_term(&self, term: u64) -> Result<(), BackendError> {
        self.fence.suspend();
        let first = FenceNumber::of_term(term)
            .ok_or_else(|| BackendError::Rejected { words: "the term is too high".to_owned() })?;
        let Answer::Stale(stored) = self.ask(Script::BeginTerm(first)).await? else {
            return Err(unavailable("another answer than a term has"));
        };
        let stored = FenceNumber::from_raw(stored);
        if stored.term() > term {
            return Err(BackendError::StaleTerm { highest: stored.term() });
        }
        self.fence.begin(stored);
        Ok(())
    }

    async fn highest_term(&self) -> Result<u64, BackendError> {
        // Nothing is below this number, so nothing is changed.
        let Answer::Stale(stored) = self.ask(Script::BeginTerm(FenceNumber::from_raw(0))).await? else {
            return Err(unavailable("another answer than a term has"));
        };
        Ok(FenceNumber::from_raw(stored).term())
    }

    async fn look(&self, volume: &VolumeId, _: &AppliancePath) -> Result<Presence, BackendError> {
        match self.ask(Script::Look(volume.clone())).await? {
            Answer::Seen(presence) => Ok(presence),
            Answer::Done | Answer::Stale(_) | Answer::Refused(_) => Err(unavailable("not a look")),
        }
    }

    async fn create(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent => Verdict::NotYet,
            Presence::FileOnly => Verdict::Conflict("a file without its disk".to_owned()),
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes != spec.size.bytes() => {
                    Verdict::Conflict(format!("slot {} has another size", spec.volume))
                }
                None if disk.is_served() => Verdict::Done,
                None => Verdict::NotYet,
            },
        };
        self.change(&spec.volume, &spec.directory, |number| Script::Create(number, spec.clone()), judge).await
    }

    async fn export(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent | Presence::FileOnly => Verdict::Conflict("it does not exist".to_owned()),
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes < spec.size.bytes() => Verdict::Conflict("too small".to_owned()),
                None if disk.is_served() => Verdict::Done,
                None => Verdict::NotYet,
            },
        };
        self.change(&spec.volume, &spec.directory, |number| Script::Export(number, spec.clone()), judge).await
    }

    async fn resize(&self, spec: &DiskSpec) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent | Presence::FileOnly => Verdict::Conflict("it does not exist".to_owned()),
            Presence::Disk(disk) => match disk.conflict_with(spec) {
                Some(reason) => Verdict::Conflict(reason),
                None if disk.size_bytes > spec.size.bytes() => Verdict::Conflict("larger already".to_owned()),
                None if disk.size_bytes < spec.size.bytes() => Verdict::NotYet,
                None => Verdict::Done,
            },
        };
        self.change(&spec.volume, &spec.directory, |number| Script::Resize(number, spec.clone()), judge).await
    }

    async fn remove(&self, volume: &VolumeId, directory: &AppliancePath) -> Result<(), BackendError> {
        let judge = |presence: &Presence| match presence {
            Presence::Absent => Verdict::Done,
            Presence::FileOnly | Presence::Disk(_) => Verdict::NotYet,
        };
        self.change(volume, directory, |number| Script::Remove(number, volume.clone()), judge).await
    }

    async fn remove_unneeded(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
        is_unneeded: IsUnneeded<'_>,
    ) -> Result<(), BackendError> {
        if !is_unneeded() {
            return Err(BackendError::Conflict { reason: format!("{volume} is needed after all") });
        }
        self.remove(volume, directory).await
    }

    async fn lone_files(&self, _: &AppliancePath) -> Result<Vec<VolumeId>, BackendError> {
        Ok(Vec::new())
    }

    async fn list(&self) -> Result<Vec<Disk>, BackendError> {
        Ok(Vec::new())
    }

    async fn capacity(&self, _: &AppliancePath) -> Result<Capacity, BackendError> {
        Ok(Capacity { total_bytes: TOTAL_BYTES, free_bytes: TOTAL_BYTES })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

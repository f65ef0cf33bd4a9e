//! One look at the appliance, and the removals after it.

use std::collections::BTreeSet;
use std::time::Duration;

use backend::{Backend, BackendError, Disk};
use state_machine::{AppliancePath, VolumeId};

use super::book::{Book, Key};
use super::judge::{Connection, Facts, PersistentVolume, Verdict, judge};
use crate::config::OrphansConfig;

/// Directories whose files are looked at, at most; a class's `volumePath` is one.
pub(crate) const MAX_DIRECTORIES: usize = 64;

/// Who may need what is on the appliance, and where to look for it.
pub(crate) trait Witnesses: Send + Sync {
    /// Who knows the volume.
    fn claims(&self, volume: &VolumeId) -> Claims;
    /// Whether a node has it connected.
    fn connection(&self, volume: &VolumeId) -> Connection;
    /// The directories that volumes are in.
    fn directories(&self) -> BTreeSet<AppliancePath>;
    /// How many volumes the ledger has.
    fn volumes(&self) -> usize;
}

/// Who knows a volume.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) in_ledger: bool,
    pub(crate) made_once: bool,
    pub(crate) persistent_volume: PersistentVolume,
}

/// Something on the appliance that is named after a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thing {
    pub(crate) volume: VolumeId,
    pub(crate) file_path: String,
    /// The directory of its file, if that is named as the driver names it.
    pub(crate) directory: Option<AppliancePath>,
    /// The disk; `None` if there is but a file.
    pub(crate) disk: Option<Disk>,
}

impl Thing {
    fn of_disk(disk: Disk) -> Self {
        Self {
            volume: disk.volume.clone(),
            file_path: disk.file_path.clone(),
            directory: disk.directory(),
            disk: Some(disk),
        }
    }

    fn of_file(volume: VolumeId, directory: AppliancePath) -> Self {
        Self {
            file_path: backend::file_path(&directory, &volume),
            volume,
            directory: Some(directory),
            disk: None,
        }
    }

    fn key(&self) -> Key {
        (self.volume.clone(), self.file_path.clone())
    }

    fn is_exported(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.exported)
    }
}

/// An orphan, or what may be one.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) thing: Thing,
    pub(crate) seen_for: Duration,
    pub(crate) verdict: Verdict,
}

/// What an orphan's removal came to.
#[derive(Debug)]
pub(crate) enum Cleaned {
    Removed,
    /// It is only said that it would be.
    WouldBe,
    Failed(BackendError),
}

/// Looks and removes; remembers since when it has seen what.
pub(crate) struct Reconciler<W> {
    pub(crate) settings: OrphansConfig,
    witnesses: W,
    book: Book,
}

impl<W: Witnesses> Reconciler<W> {
    pub(crate) fn new(settings: OrphansConfig, witnesses: W) -> Self {
        Self { settings, witnesses, book: Book::default() }
    }

    /// A new office begins: what was seen before is forgotten.
    pub(crate) fn forget(&mut self) {
        self.book = Book::default();
    }

    /// All orphans, oldest first. A look that fails in any part finds nothing and changes nothing.
    pub(crate) async fn look(
        &mut self,
        backend: &dyn Backend,
        now: Duration,
    ) -> Result<Vec<Found>, BackendError> {
        let things = self.things(backend).await?;
        // Asked after the appliance was: what was made meanwhile is known by now.
        let known = things.into_iter().map(|thing| (self.witnesses.claims(&thing.volume), thing));
        let unclaimed: Vec<(Claims, Thing)> = known.filter(|(claims, _)| !claims.is_needed()).collect();
        self.book.enter(unclaimed.iter().map(|(_, thing)| thing.key()), now);
        let by_path =
            unclaimed.iter().filter(|(claims, thing)| !claims.made_once && self.is_exclusive(thing));
        let is_ledger_whole = by_path.count() <= self.witnesses.volumes();
        let mut found: Vec<Found> = unclaimed
            .into_iter()
            .map(|(claims, thing)| {
                let seen_for = self.book.seen_for(&thing.key(), now);
                let verdict = self.judge(&thing, claims, seen_for, is_ledger_whole);
                Found { thing, seen_for, verdict }
            })
            .filter(|found| found.verdict != Verdict::Needed)
            .collect();
        found.sort_by(|one, other| {
            other.seen_for.cmp(&one.seen_for).then_with(|| one.thing.key().cmp(&other.thing.key()))
        });
        Ok(found)
    }

    /// Removes what may be removed, oldest first, as far as the settings let it. It ends early if the appliance does not
    /// answer, or belongs to a later leader.
    pub(crate) async fn clean(
        &self,
        backend: &dyn Backend,
        found: &[Found],
    ) -> Vec<(Thing, &'static str, Cleaned)> {
        let mut cleaned = Vec::new();
        if !self.settings.enabled {
            return cleaned;
        }
        let removable = found.iter().filter_map(|found| match &found.verdict {
            Verdict::Removable { because } => Some((found, *because)),
            Verdict::Needed | Verdict::Kept { .. } => None,
        });
        let bound = usize::try_from(self.settings.max_per_pass).unwrap_or(usize::MAX);
        for (found, because) in removable.take(bound) {
            let outcome =
                if self.settings.dry_run { Cleaned::WouldBe } else { self.remove(backend, found).await };
            let is_over = matches!(
                outcome,
                Cleaned::Failed(BackendError::Unavailable { .. } | BackendError::StaleTerm { .. })
            );
            cleaned.push((found.thing.clone(), because, outcome));
            if is_over {
                break;
            }
        }
        cleaned
    }

    async fn remove(&self, backend: &dyn Backend, found: &Found) -> Cleaned {
        let Found { thing, seen_for, .. } = found;
        let Some(directory) = &thing.directory else {
            let words = "its file is not named as this driver names one".to_owned();
            return Cleaned::Failed(BackendError::Rejected { words });
        };
        // That the ledger was whole is of the look; all else is asked anew.
        let is_unneeded =
            || self.judge(thing, self.witnesses.claims(&thing.volume), *seen_for, true).is_removable();
        match backend.remove_unneeded(&thing.volume, directory, &is_unneeded).await {
            Ok(()) => Cleaned::Removed,
            Err(error) => Cleaned::Failed(error),
        }
    }

    fn judge(&self, thing: &Thing, claims: Claims, seen_for: Duration, is_ledger_whole: bool) -> Verdict {
        let is_exclusive = self.is_exclusive(thing);
        let may_go = claims.made_once || is_exclusive;
        let connection = if thing.is_exported() && may_go {
            self.witnesses.connection(&thing.volume)
        } else {
            Connection::Nowhere
        };
        let facts = Facts {
            in_ledger: claims.in_ledger,
            persistent_volume: claims.persistent_volume,
            made_once: claims.made_once,
            is_exclusive,
            is_named_as_ours: thing.directory.is_some(),
            is_ledger_whole,
            connection,
            seen_for,
        };
        judge(&facts, Duration::from_secs(self.settings.grace_seconds.into()))
    }

    fn is_exclusive(&self, thing: &Thing) -> bool {
        let below = |path: &AppliancePath| {
            thing.file_path.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.settings.exclusive_volume_paths.iter().any(below)
    }

    /// Everything on the appliance that is named after a volume.
    async fn things(&self, backend: &dyn Backend) -> Result<Vec<Thing>, BackendError> {
        let mut things: Vec<Thing> = backend.list().await?.into_iter().map(Thing::of_disk).collect();
        let mut directories = self.witnesses.directories();
        directories.extend(self.settings.exclusive_volume_paths.iter().cloned());
        for directory in directories.into_iter().take(MAX_DIRECTORIES) {
            let files = backend.lone_files(&directory).await?;
            things.extend(files.into_iter().map(|volume| Thing::of_file(volume, directory.clone())));
        }
        Ok(things)
    }
}

impl Claims {
    fn is_needed(&self) -> bool {
        self.in_ledger || self.persistent_volume == PersistentVolume::There
    }
}

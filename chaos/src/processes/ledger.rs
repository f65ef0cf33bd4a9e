//! Follows the ledger: what it records of each volume, told by the leader, with the moment when it was recorded.
//!
//! That moment is never earlier than it was so. It is later by the time that an answer takes; where a leader died in
//! between, by the time that the states of the others take to be heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::operator::v1::{GetVolumeRequest, Record, Volume};
use rds_csi::dev::requests::within;
use tokio::time::{sleep, timeout};

use super::lab::Lab;
use crate::history::{LedgerFact, Micros, Transition};

/// Pause between two rounds over all volumes.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_millis(1_000);

/// The volumes that are there, and what is needed to understand their records.
#[derive(Debug, Default)]
pub(super) struct Follower {
    volumes: Mutex<BTreeMap<String, Followed>>,
}

#[derive(Debug, Default)]
struct Followed {
    last_record: u64,
    /// The newest generation of each node: a record of its end does not say it.
    generations: BTreeMap<String, u64>,
}

impl Follower {
    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, Followed>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the volume is followed.
    pub(super) fn begin(&self, volume: &str) {
        self.volumes().entry(volume.to_owned()).or_default();
    }

    /// The volume is gone.
    pub(super) fn end(&self, volume: &str) {
        self.volumes().remove(volume);
    }

    /// The volumes that are followed.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.volumes().keys().cloned().collect()
    }

    /// Takes what is new in the volume's history; `answered` is when it was told.
    fn take(&self, lab: &Lab, volume: &Volume, answered: Micros) {
        let mut volumes = self.volumes();
        let Some(followed) = volumes.get_mut(&volume.id) else { return };
        for record in &volume.history {
            if record.number <= followed.last_record {
                continue;
            }
            followed.last_record = record.number;
            // The leader's clock runs: the record is as old as that clock says, to the ms.
            let age = volume.ledger_time_ms.saturating_sub(record.at_ms + 1) * 1_000;
            let is_followed = !matches!(record.fact.as_str(), "Created" | "Expanded");
            match fact(record, &mut followed.generations) {
                Some(fact) => {
                    let (at, ledger_ms) = (answered.saturating_sub(age), record.at_ms);
                    let transition = Transition { at, ledger_ms, volume: volume.id.clone(), fact };
                    lab.recorder.transition(record.number, transition);
                }
                None if is_followed => {
                    lab.recorder.trouble(format!("a record is not understood: {record:?}"))
                }
                None => {}
            }
        }
    }
}

/// Looks at all volumes, again and again.
pub(super) async fn follow(lab: &Lab) -> anyhow::Result<()> {
    loop {
        for volume in lab.follower.names() {
            look(lab, &volume).await;
        }
        sleep(PAUSE).await;
    }
}

/// Looks at one volume now; false if its leader did not answer.
pub(super) async fn look(lab: &Lab, volume: &str) -> bool {
    let Some(leader) = lab.watch.leader() else { return false };
    let Ok(mut operator) = lab.doors.operator(&leader.name) else { return false };
    let request = GetVolumeRequest { id: volume.to_owned(), with_history: true };
    match timeout(LOOK_LIMIT, operator.get_volume(within(LOOK_LIMIT, request))).await {
        Ok(Ok(reply)) if reply.get_ref().by_leader => {
            lab.follower.take(lab, reply.get_ref(), lab.recorder.now());
            true
        }
        Ok(Err(status)) => status.code() == tonic::Code::NotFound,
        Ok(Ok(_)) | Err(_) => false,
    }
}

/// What a record says, if it is about attachments or migrations and in the form that is known.
fn fact(record: &Record, generations: &mut BTreeMap<String, u64>) -> Option<LedgerFact> {
    let node = record.node_id.clone();
    let generation = generations.get(&node).copied().unwrap_or(0);
    let words: Vec<&str> = record.detail.split(' ').collect();
    Some(match (record.fact.as_str(), record.migration_id) {
        ("Attached", _) => {
            let generation = words.get(1)?.parse().ok()?;
            generations.insert(node.clone(), generation);
            LedgerFact::Attached { node, generation }
        }
        ("Revoked", _) => LedgerFact::Revoking { node, generation },
        ("Detached", _) => LedgerFact::Detached { node, generation },
        ("MigrationStarted", Some(migration)) => {
            let ["from", source, "to", target, "within", seconds, "s"] = words[..] else { return None };
            let (source, target) = (source.to_owned(), target.to_owned());
            let timeout_ms = seconds.parse::<u64>().ok()? * 1_000;
            LedgerFact::MigrationStarted { migration, source, target, timeout_ms }
        }
        ("MigrationOverdue", Some(migration)) => LedgerFact::MigrationOverdue { migration },
        ("ReapDecided", Some(migration)) => LedgerFact::Reaping { migration, node },
        ("MigrationEnded", Some(migration)) => {
            let outcome = words.first()?.trim_end_matches(',').to_owned();
            LedgerFact::MigrationEnded { migration, outcome }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fact: &str, node: &str, migration: Option<u64>, detail: &str) -> Record {
        Record {
            fact: fact.to_owned(),
            node_id: node.to_owned(),
            migration_id: migration,
            detail: detail.to_owned(),
            ..Record::default()
        }
    }

    #[test]
    fn records_are_understood() {
        let mut generations = BTreeMap::new();
        let mut understood = |record: Record| fact(&record, &mut generations);
        let attached = understood(record("Attached", "b", None, "generation 7"));
        assert_eq!(attached, Some(LedgerFact::Attached { node: "b".to_owned(), generation: 7 }));
        let detached = understood(record("Detached", "b", None, "unpublish: it says so"));
        assert_eq!(detached, Some(LedgerFact::Detached { node: "b".to_owned(), generation: 7 }));
        let started = understood(record("MigrationStarted", "b", Some(3), "from a to b within 30 s"));
        assert!(
            matches!(started, Some(LedgerFact::MigrationStarted { timeout_ms: 30_000, .. })),
            "{started:?}"
        );
        let ended = understood(record("MigrationEnded", "", Some(3), "timeout, says the reaper: idle"));
        let timeout = LedgerFact::MigrationEnded { migration: 3, outcome: "timeout".to_owned() };
        assert_eq!(ended, Some(timeout));
    }
}

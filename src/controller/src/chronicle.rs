//! What happened, told: the ledger's records become events on the volumes' claims and durations of migrations.
//!
//! Only the leader tells. One that takes office tells what happened in the last [`RETOLD`] once more, as nobody may
//! have told it: an event is named after its record, so that a repeat is the same event. A record whose claim is not
//! known yet, as right after a start, is waited for, but not for longer than [`CLAIM_WAIT`], and others are not.
//!
//! Life cycle: one task a controller, which follows leadership and ledger.

use std::collections::VecDeque;
use std::time::Duration;

use observer::{Answer, Event, EventReason, Events, Observer};
use replica::Replica;
use state_machine::{Fact, LedgerTime, MigrationOutcome, ORCHESTRATOR, Record, State, VolumeId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What is told again by a new leader. Kubernetes forgets events after an hour, and then a repeat would be a new one.
const RETOLD: Duration = Duration::from_secs(600);
/// How long a claim may stay unknown before its event is given up.
const CLAIM_WAIT: Duration = Duration::from_secs(60);
/// Records that may wait for their claims; beyond that the oldest is given up.
const WAITING: usize = 1_000;
/// The least time between two looks: one look tells everything that came since the last one.
const PAUSE: Duration = Duration::from_millis(500);

/// Who tells.
pub(crate) struct Chronicle {
    pub(crate) replica: Replica,
    pub(crate) observer: Observer,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
}

/// How far it is told in one office.
#[derive(Debug)]
struct Told {
    /// The number of the last record whose event was posted, given up, or waits.
    events_to: u64,
    /// The number of the last record that was measured; what was before the office, its leader measured.
    measured_to: u64,
    /// Records whose claims are not known yet, and since when.
    waiting: VecDeque<(VolumeId, Record, Instant)>,
}

/// When this replica saw which records first. The ledger's own clock stands still while nothing happens.
#[derive(Debug, Default)]
struct Seen {
    marks: VecDeque<(Instant, u64)>,
}

impl Seen {
    /// The last record, now.
    fn mark(&mut self, last_record: u64, now: Instant) {
        if self.marks.back().is_none_or(|(_, seen)| *seen < last_record) {
            self.marks.push_back((now, last_record));
        }
        // One that is older stays: all before it are.
        while self.marks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RETOLD) {
            self.marks.pop_front();
        }
    }

    /// The last record that was seen before [`RETOLD`].
    fn old(&self, now: Instant) -> u64 {
        let old = self.marks.iter().rev().find(|(at, _)| now.duration_since(*at) >= RETOLD);
        old.map_or(0, |(_, record)| *record)
    }
}

impl Chronicle {
    /// Tells until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut leadership = self.replica.watch_leadership();
        let mut applied = self.replica.watch_applied();
        let (mut seen, mut told) = (Seen::default(), None::<(u64, Told)>);
        loop {
            let term = leadership.borrow_and_update().map(|leadership| leadership.term);
            applied.mark_unchanged();
            let now = Instant::now();
            seen.mark(self.replica.read_local(State::last_record), now);
            if term != told.as_ref().map(|(term, _)| *term) {
                let old = seen.old(now);
                told = term.map(|term| (term, self.replica.read_local(|state| begin(state, old))));
            }
            if let Some((_, told)) = &mut told {
                self.tell(told);
            }
            let waits = told.as_ref().is_some_and(|(_, told)| !told.waiting.is_empty());
            // What an office did not measure nobody does: the next one begins at once.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return } else { continue },
                changed = applied.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(PAUSE), if waits => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn tell(&self, told: &mut Told) {
        let records: Vec<(VolumeId, Record)> = self.replica.read_local(|state| {
            let from = told.events_to.min(told.measured_to);
            state.records_after(from).map(|(id, record)| (id.clone(), record.clone())).collect()
        });
        let waiting = std::mem::take(&mut told.waiting);
        told.waiting = waiting
            .into_iter()
            .filter(|(volume, record, since)| !self.post(volume, record, *since))
            .collect();
        let now = Instant::now();
        for (volume, record) in records {
            if record.number > told.measured_to {
                self.measure(&record);
                told.measured_to = record.number;
            }
            if record.number > told.events_to {
                told.events_to = record.number;
                if !self.post(&volume, &record, now) {
                    told.waiting.push_back((volume, record, now));
                }
            }
        }
        while told.waiting.len() > WAITING {
            if let Some((volume, record, _)) = told.waiting.pop_front() {
                tracing::warn!(%volume, record = record.number, "no event: too many wait for their claims");
            }
        }
    }

    fn measure(&self, record: &Record) {
        match &record.fact {
            Fact::MigrationEnded { started_at, .. } => {
                self.metrics.migration_took(Duration::from_millis(record.at.millis_since(*started_at)));
            }
            Fact::ReapDecided { .. } => self.metrics.reaped(),
            Fact::Detached { by, .. } if by != ORCHESTRATOR => self.metrics.stale_cleared(),
            Fact::Created { .. }
            | Fact::Expanded { .. }
            | Fact::Attached { .. }
            | Fact::Revoked { .. }
            | Fact::Detached { .. }
            | Fact::MigrationStarted { .. }
            | Fact::MigrationOverdue { .. }
            | Fact::TakenIn { .. } => {}
        }
    }

    /// Posts the record's event, if it has one, which has waited since then; whether it is done with.
    fn post(&self, volume: &VolumeId, record: &Record, since: Instant) -> bool {
        let Some((reason, message)) = event_of(&record.fact) else { return true };
        match self.observer.index().claim(volume) {
            Answer::Known(claim) => {
                let key = record.number.to_string();
                self.events.post(Event { claim, reason, message: format!("{volume}: {message}"), key });
                true
            }
            Answer::Absent | Answer::Unknown(observer::Why::NoKubernetes) => true,
            Answer::Unknown(why) => {
                let given_up = since.elapsed() >= CLAIM_WAIT;
                if given_up {
                    tracing::warn!(%volume, event = reason.name(), %why, "no event: its claim is not known");
                }
                given_up
            }
        }
    }
}

/// Where a new office begins: at what is young by the ledger's clock, and not old by this replica's own.
fn begin(state: &State, old: u64) -> Told {
    let retold_ms = u64::try_from(RETOLD.as_millis()).unwrap_or(u64::MAX);
    let since = LedgerTime(state.clock().0.saturating_sub(retold_ms));
    let young = state.records_after(old).find(|(_, record)| record.at >= since);
    let events_to = young.map_or(state.last_record(), |(_, record)| record.number.saturating_sub(1));
    Told { events_to, measured_to: state.last_record(), waiting: VecDeque::new() }
}

/// The event that people get of a fact, in a sentence.
fn event_of(fact: &Fact) -> Option<(EventReason, String)> {
    Some(match fact {
        Fact::Attached { node, .. } => (EventReason::VolumeAttached, format!("attached to {node}")),
        Fact::Detached { node, by, evidence } if by == ORCHESTRATOR => {
            (EventReason::VolumeDetached, format!("detached from {node}: {evidence}"))
        }
        Fact::Detached { node, by, evidence } => {
            (EventReason::StaleAttachmentCleared, format!("taken from {node}, by {by}: {evidence}"))
        }
        Fact::MigrationStarted { id, source, target, timeout_seconds } => (
            EventReason::MigrationStarted,
            format!("migration {id} from {source} to {target}; overdue after {timeout_seconds} s"),
        ),
        Fact::MigrationOverdue { id } => (
            EventReason::MigrationOverdue,
            format!(
                "migration {id} is past its time and still holds two nodes; it is ended once it is known which side \
                 is stale"
            ),
        ),
        Fact::MigrationEnded { id, outcome, decided_by, evidence, .. } => {
            let (reason, how) = match outcome {
                MigrationOutcome::Success => (EventReason::MigrationCompleted, "completed"),
                MigrationOutcome::Failed => (EventReason::MigrationFailed, "cancelled"),
                MigrationOutcome::Timeout => (EventReason::MigrationFailed, "timeout, reaped"),
            };
            (reason, format!("migration {id}: {how}, by {decided_by}: {evidence}"))
        }
        Fact::Created { .. }
        | Fact::Expanded { .. }
        | Fact::Revoked { .. }
        | Fact::ReapDecided { .. }
        | Fact::TakenIn { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use state_machine::{ByteSize, Generation, MigrationId, NodeId};

    use super::*;

    #[test]
    fn a_record_is_old_ten_minutes_after_this_replica_saw_it_whatever_the_ledgers_clock_does() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        seen.mark(7, at(0));
        seen.mark(7, at(300));
        seen.mark(9, at(400));
        assert_eq!(seen.old(at(599)), 0);
        assert_eq!(seen.old(at(600)), 7);
        seen.mark(9, at(36_000));
        assert_eq!(seen.old(at(36_000)), 9, "idle for ten hours");
        for second in 0..100 {
            seen.mark(10 + second, at(40_000 + second));
        }
        seen.mark(200, at(50_000));
        assert_eq!((seen.marks.len(), seen.old(at(50_000))), (2, 109), "no more is kept than is needed");
    }

    #[test]
    fn each_fact_has_its_event_or_none() {
        let node = || NodeId::parse("node-a").unwrap();
        let detached =
            |by: &str| Fact::Detached { node: node(), by: by.to_owned(), evidence: "e".to_owned() };
        let ended = |outcome| Fact::MigrationEnded {
            id: MigrationId(7),
            outcome,
            decided_by: "x".to_owned(),
            evidence: "e".to_owned(),
            started_at: LedgerTime(0),
        };
        let rows = [
            (Fact::Created { size: ByteSize::at_least(1).unwrap() }, None),
            (Fact::Attached { node: node(), generation: Generation(1) }, Some("VolumeAttached")),
            (Fact::Revoked { node: node(), why: String::new() }, None),
            (detached(ORCHESTRATOR), Some("VolumeDetached")),
            (detached("Kubernetes"), Some("StaleAttachmentCleared")),
            (detached("operator dev"), Some("StaleAttachmentCleared")),
            (Fact::MigrationOverdue { id: MigrationId(7) }, Some("MigrationOverdue")),
            (ended(MigrationOutcome::Success), Some("MigrationCompleted")),
            (ended(MigrationOutcome::Failed), Some("MigrationFailed")),
            (ended(MigrationOutcome::Timeout), Some("MigrationFailed")),
        ];
        for (fact, expected) in rows {
            let event = event_of(&fact);
            assert_eq!(event.as_ref().map(|(reason, _)| reason.name()), expected, "{fact:?}");
        }
        let (_, message) = event_of(&ended(MigrationOutcome::Timeout)).unwrap();
        assert_eq!(message, "migration 7: timeout, reaped, by x: e");
    }
}

//! What happened, told: the ledger's records become events on the volumes' claims and durations of migrations.
//!
//! Only the leader tells. One that takes office tells what happened in the last [`RETOLD_MS`] once more, as nobody may
//! have told it: an event is named after its record, so that a repeat is the same event. A record whose claim is not
//! known yet, as right after a start, is waited for, but not for longer than [`CLAIM_WAIT_MS`].
//!
//! Life cycle: one task a controller, which follows leadership and ledger.

use std::time::Duration;

use observer::{Answer, Event, EventReason, Events, Observer};
use replica::Replica;
use state_machine::{Fact, LedgerTime, MigrationOutcome, ORCHESTRATOR, Record, State, VolumeId};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What is told again by a new leader, in ms of the ledger's time.
const RETOLD_MS: u64 = 600_000;
/// How long a claim may stay unknown before its event is given up.
const CLAIM_WAIT_MS: u64 = 60_000;
/// The least time between two looks, in ms: one look tells everything that came since the last one.
const PAUSE_MS: u64 = 500;

/// Who tells.
pub(crate) struct Chronicle {
    pub(crate) replica: Replica,
    pub(crate) observer: Observer,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
}

/// How far it is told in one office.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// The number of the last record whose event was posted or given up.
    events_to: u64,
    /// The number of the last record that was measured; what was before the office, its leader measured.
    measured_to: u64,
    /// Since when the record after `events_to` waits for its claim.
    waiting_since: Option<tokio::time::Instant>,
}

impl Chronicle {
    /// Tells until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut leadership = self.replica.watch_leadership();
        let mut applied = self.replica.watch_applied();
        let mut term_told = None;
        let mut told = None;
        loop {
            let term = leadership.borrow_and_update().map(|leadership| leadership.term);
            applied.mark_unchanged();
            if term != term_told {
                (term_told, told) = (term, term.map(|_| self.replica.read_local(begin)));
            }
            if let Some(told) = &mut told {
                self.tell(told);
            }
            let waits = told.is_some_and(|told| told.waiting_since.is_some());
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
                changed = applied.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(PAUSE_MS)), if waits => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(PAUSE_MS))).await.is_none() {
                return;
            }
        }
    }

    fn tell(&self, told: &mut Told) {
        let records: Vec<(VolumeId, Record)> = self.replica.read_local(|state| {
            let from = told.events_to.min(told.measured_to);
            state.records_after(from).map(|(id, record)| (id.clone(), record.clone())).collect()
        });
        let measured_to = told.measured_to;
        for (_, record) in records.iter().filter(|(_, record)| record.number > measured_to) {
            self.measure(record);
        }
        if let Some((_, last)) = records.last() {
            told.measured_to = told.measured_to.max(last.number);
        }
        for (volume, record) in &records {
            if record.number <= told.events_to {
                continue;
            }
            if !self.post(volume, record, told) {
                return;
            }
            (told.events_to, told.waiting_since) = (record.number, None);
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
            | Fact::MigrationOverdue { .. } => {}
        }
    }

    /// Posts the record's event, if it has one; whether it is done with.
    fn post(&self, volume: &VolumeId, record: &Record, told: &mut Told) -> bool {
        let Some((reason, message)) = event_of(&record.fact) else { return true };
        match self.observer.index().claim(volume) {
            Answer::Known(claim) => {
                let key = record.number.to_string();
                self.events.post(Event { claim, reason, message: format!("{volume}: {message}"), key });
                true
            }
            Answer::Absent | Answer::Unknown(observer::Why::NoKubernetes) => true,
            Answer::Unknown(why) => {
                let since = *told.waiting_since.get_or_insert_with(tokio::time::Instant::now);
                let given_up = since.elapsed() >= Duration::from_millis(CLAIM_WAIT_MS);
                if given_up {
                    tracing::warn!(%volume, event = reason.name(), %why, "no event: its claim is not known");
                }
                given_up
            }
        }
    }
}

/// Where a new office begins.
fn begin(state: &State) -> Told {
    let since = LedgerTime(state.clock().0.saturating_sub(RETOLD_MS));
    let retold = state.records_after(0).find(|(_, record)| record.at >= since);
    let events_to = retold.map_or(state.last_record(), |(_, record)| record.number.saturating_sub(1));
    Told { events_to, measured_to: state.last_record(), waiting_since: None }
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
        Fact::Created { .. } | Fact::Expanded { .. } | Fact::Revoked { .. } | Fact::ReapDecided { .. } => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use state_machine::{ByteSize, Generation, MigrationId, NodeId};

    use super::*;

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

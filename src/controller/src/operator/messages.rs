//! The ledger's facts in the operator protocol's messages.

use proto::operator::v1;
use state_machine::{
    Attachment, Connection, EndedMigration, Fact, Migration, MigrationId, MigrationPhase, NodeId, Problem,
    Record, State, Volume, VolumeId,
};

/// A volume without its history, as of the last entry.
pub(crate) fn volume_message(state: &State, volume: &Volume) -> v1::Volume {
    v1::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        size_bytes: volume.size.bytes(),
        phase: volume.phase.name().to_owned(),
        generation: volume.generation.0,
        problem: problem_text(volume.problem.as_ref()),
        attachments: volume.attachments.iter().map(attachment_message).collect(),
        migration: volume.migration.as_ref().map(|migration| running_message(&volume.id, migration)),
        cut_off_nodes: volume.cut_off.iter().map(ToString::to_string).collect(),
        parameters: csi::context::class_parameters(&volume.parameters).into_iter().collect(),
        ledger_time_ms: state.clock().0,
        ..v1::Volume::default()
    }
}

fn attachment_message((node, attachment): (&NodeId, &Attachment)) -> v1::Attachment {
    let connection = match attachment.connection {
        Connection::Disconnected => "not connected",
        Connection::Permitted => "permitted, may be connected",
    };
    v1::Attachment {
        node_id: node.to_string(),
        mode: attachment.mode.to_string(),
        phase: attachment.phase.name().to_owned(),
        generation: attachment.generation.0,
        connection: connection.to_owned(),
        problem: problem_text(attachment.problem.as_ref()),
        since_ms: attachment.since.0,
    }
}

fn problem_text(problem: Option<&Problem>) -> String {
    problem.map(|problem| problem.message.clone()).unwrap_or_default()
}

/// Running ones first, then those that ended, newest first.
pub(super) fn all_migrations(state: &State) -> Vec<v1::Migration> {
    let running = state.volumes().values().filter_map(|volume| {
        volume.migration.as_ref().map(|migration| running_message(&volume.id, migration))
    });
    running.chain(state.ended_migrations().iter().rev().map(ended_message)).collect()
}

fn running_message(volume: &VolumeId, migration: &Migration) -> v1::Migration {
    let (decided_by, evidence) = match &migration.phase {
        MigrationPhase::Reaping(decision) => (decision.decided_by.clone(), decision.evidence.clone()),
        MigrationPhase::Active | MigrationPhase::Overdue => (String::new(), String::new()),
    };
    v1::Migration {
        id: migration.id.0,
        volume_id: volume.to_string(),
        source_node_id: migration.source.to_string(),
        target_node_id: migration.target.to_string(),
        phase: migration.phase.name().to_owned(),
        outcome: String::new(),
        started_ms: migration.started_at.0,
        timeout_ms: migration.deadline.millis_since(migration.started_at),
        deadline_ms: migration.deadline.0,
        ended_ms: None,
        decided_by,
        evidence,
    }
}

fn ended_message(ended: &EndedMigration) -> v1::Migration {
    v1::Migration {
        id: ended.id.0,
        volume_id: ended.volume.to_string(),
        source_node_id: ended.source.to_string(),
        target_node_id: ended.target.to_string(),
        phase: "Ended".to_owned(),
        outcome: ended.outcome.name().to_owned(),
        started_ms: ended.started_at.0,
        timeout_ms: ended.deadline.millis_since(ended.started_at),
        deadline_ms: ended.deadline.0,
        ended_ms: Some(ended.ended_at.0),
        decided_by: ended.decided_by.clone(),
        evidence: ended.evidence.clone(),
    }
}

/// A volume's history, oldest first.
pub(super) fn history(volume: &Volume) -> Vec<v1::Record> {
    volume.history.iter().map(record_message).collect()
}

fn record_message(record: &Record) -> v1::Record {
    let (fact, node, migration, detail) = words(&record.fact);
    v1::Record {
        number: record.number,
        at_ms: record.at.0,
        fact: fact.to_owned(),
        node_id: node.map(ToString::to_string).unwrap_or_default(),
        migration_id: migration.map(|id| id.0),
        detail,
    }
}

/// A fact's name, the node and the migration that it is about, and the rest of it for people.
fn words(fact: &Fact) -> (&'static str, Option<&NodeId>, Option<MigrationId>, String) {
    match fact {
        Fact::Created { size } => ("Created", None, None, format!("{size} bytes")),
        Fact::Expanded { size } => ("Expanded", None, None, format!("{size} bytes")),
        Fact::Attached { node, generation } => {
            ("Attached", Some(node), None, format!("generation {generation}"))
        }
        Fact::Revoked { node, why } => ("Revoked", Some(node), None, why.clone()),
        Fact::Detached { node, by, evidence } => ("Detached", Some(node), None, format!("{by}: {evidence}")),
        Fact::MigrationStarted { id, source, target, timeout_seconds } => {
            let detail = format!("from {source} to {target} within {timeout_seconds} s");
            ("MigrationStarted", Some(target), Some(*id), detail)
        }
        Fact::MigrationOverdue { id } => ("MigrationOverdue", None, Some(*id), "its time is over".to_owned()),
        Fact::ReapDecided { id, stale, decided_by, evidence } => {
            let detail = format!("{stale} is stale, says {decided_by}: {evidence}");
            ("ReapDecided", Some(stale), Some(*id), detail)
        }
        Fact::MigrationEnded { id, outcome, decided_by, evidence, .. } => {
            let detail = format!("{}, says {decided_by}: {evidence}", outcome.name());
            ("MigrationEnded", None, Some(*id), detail)
        }
        Fact::TakenIn { from } => ("TakenIn", None, None, from.clone()),
    }
}

//! Answers as tables for people.

use proto::operator::v1::{
    AddReplicaReply, Attachment, ListMigrationsReply, ListReplicasReply, ListVolumesReply, Migration,
    ReplicaStatus, StatusReply, Volume,
};

use crate::table::Table;
use crate::units;

/// How much of a state hash people compare, in hexadecimal digits.
const HASH_DIGITS_SHOWN: usize = 16;

fn optional(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

fn name_of(replicas: &[ReplicaStatus], id: u64) -> String {
    match replicas.iter().find(|replica| replica.id == id) {
        Some(replica) => format!("{} ({id})", replica.name),
        None => id.to_string(),
    }
}

pub(crate) fn status(reply: &StatusReply) -> String {
    let leader = match reply.leader_id {
        Some(id) => name_of(&reply.replicas, id),
        None => "none known".to_owned(),
    };
    let mut facts = Table::headless();
    facts.row(["cluster".to_owned(), reply.cluster_id.clone()]);
    facts.row(["answered by".to_owned(), name_of(&reply.replicas, reply.responder_id)]);
    facts.row(["leader".to_owned(), leader]);
    facts.row(["term".to_owned(), reply.term.to_string()]);
    facts.row(["last log index".to_owned(), optional(reply.last_log_index)]);
    facts.row(["committed".to_owned(), optional(reply.committed_index)]);
    facts.row(["applied".to_owned(), optional(reply.applied_index)]);
    facts.row(["state hash".to_owned(), reply.state_hash.chars().take(HASH_DIGITS_SHOWN).collect()]);
    facts.row(["cluster version".to_owned(), reply.cluster_version.to_string()]);
    facts.row(["volumes".to_owned(), reply.volumes.to_string()]);
    facts.row(["attachments".to_owned(), reply.attachments.to_string()]);
    facts.row(["active migrations".to_owned(), reply.active_migrations.to_string()]);
    format!("{}\n{}", facts.render(), replica_table(&reply.replicas))
}

pub(crate) fn replicas(reply: &ListReplicasReply) -> String {
    replica_table(&reply.replicas)
}

fn replica_table(replicas: &[ReplicaStatus]) -> String {
    let mut table = Table::new(["REPLICA", "ID", "ADDRESS", "ROLE", "VOTER", "MATCHED", "LAG"]);
    let mut replicas: Vec<&ReplicaStatus> = replicas.iter().collect();
    replicas.sort_by(|one, other| one.name.cmp(&other.name));
    for replica in replicas {
        table.row([
            replica.name.clone(),
            replica.id.to_string(),
            replica.address.clone(),
            replica.role.clone(),
            if replica.voter { "yes" } else { "no" }.to_owned(),
            optional(replica.matched_index),
            optional(replica.lag),
        ]);
    }
    table.render()
}

pub(crate) fn added(reply: &AddReplicaReply) -> String {
    format!("replica {} is added\n", reply.replica_id)
}

pub(crate) fn volumes(reply: &ListVolumesReply) -> String {
    let mut table = Table::new(["VOLUME", "SIZE", "PHASE", "ATTACHED", "MIGRATION", "PROBLEM"]);
    for volume in &reply.volumes {
        let attached = |attachment: &Attachment| format!("{} {}", attachment.node_id, attachment.phase);
        let attached: Vec<String> = volume.attachments.iter().map(attached).collect();
        table.row([
            volume.id.clone(),
            units::size(volume.size_bytes),
            volume.phase.clone(),
            attached.join(", "),
            volume.migration.as_ref().map(migration_path).unwrap_or_default(),
            volume.problem.clone(),
        ]);
    }
    table.render()
}

fn migration_path(migration: &Migration) -> String {
    format!("{} -> {} {}", migration.source_node_id, migration.target_node_id, migration.phase)
}

pub(crate) fn volume(volume: &Volume) -> String {
    let mut facts = Table::headless();
    facts.row(["volume".to_owned(), volume.id.clone()]);
    facts.row(["name".to_owned(), volume.name.clone()]);
    facts.row([
        "size".to_owned(),
        format!("{} ({} bytes)", units::size(volume.size_bytes), volume.size_bytes),
    ]);
    facts.row(["phase".to_owned(), volume.phase.clone()]);
    facts.row(["generation".to_owned(), volume.generation.to_string()]);
    facts.row(["problem".to_owned(), volume.problem.clone()]);
    facts.row(["cut off".to_owned(), volume.cut_off_nodes.join(", ")]);
    if let Some(migration) = &volume.migration {
        let age = units::span(volume.ledger_time_ms.saturating_sub(migration.started_ms));
        let limit = units::span(migration.timeout_ms);
        facts.row(["migration".to_owned(), format!("{}, {age} of {limit}", migration_path(migration))]);
    }
    for (name, value) in &volume.parameters {
        facts.row([name.clone(), value.clone()]);
    }
    let mut table = Table::new(["NODE", "PHASE", "GENERATION", "CONNECTION", "MODE", "PROBLEM"]);
    for attachment in &volume.attachments {
        table.row([
            attachment.node_id.clone(),
            attachment.phase.clone(),
            attachment.generation.to_string(),
            attachment.connection.clone(),
            attachment.mode.clone(),
            attachment.problem.clone(),
        ]);
    }
    let mut text = format!("{}\n{}", facts.render(), table.render());
    if !volume.history.is_empty() {
        text += &format!("\n{}", history(volume));
    }
    text
}

/// What happened to a volume, newest first.
fn history(volume: &Volume) -> String {
    let mut table = Table::new(["RECORD", "AGE", "FACT", "NODE", "MIGRATION", "DETAIL"]);
    for record in volume.history.iter().rev() {
        table.row([
            record.number.to_string(),
            units::span(volume.ledger_time_ms.saturating_sub(record.at_ms)),
            record.fact.clone(),
            record.node_id.clone(),
            optional(record.migration_id),
            record.detail.clone(),
        ]);
    }
    table.render()
}

pub(crate) fn migrations(reply: &ListMigrationsReply) -> String {
    let mut table = Table::new([
        "ID",
        "VOLUME",
        "SOURCE",
        "TARGET",
        "PHASE",
        "OUTCOME",
        "BEGAN",
        "TOOK",
        "LIMIT",
        "DECIDED BY",
        "EVIDENCE",
    ]);
    for migration in &reply.migrations {
        let until = migration.ended_ms.unwrap_or(reply.ledger_time_ms);
        table.row([
            migration.id.to_string(),
            migration.volume_id.clone(),
            migration.source_node_id.clone(),
            migration.target_node_id.clone(),
            migration.phase.clone(),
            migration.outcome.clone(),
            format!("{} ago", units::span(reply.ledger_time_ms.saturating_sub(migration.started_ms))),
            units::span(until.saturating_sub(migration.started_ms)),
            units::span(migration.timeout_ms),
            migration.decided_by.clone(),
            migration.evidence.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use proto::operator::v1::Record;

    use super::*;

    fn replica(id: u64, role: &str, lag: Option<u64>) -> ReplicaStatus {
        ReplicaStatus {
            id,
            name: format!("controller-{id}"),
            address: format!("127.0.0.1:{id}"),
            role: role.to_owned(),
            voter: true,
            matched_index: lag.map(|lag| 100 - lag),
            lag,
        }
    }

    fn migration() -> Migration {
        Migration {
            id: 3,
            volume_id: "pvc-1".to_owned(),
            source_node_id: "node-a".to_owned(),
            target_node_id: "node-b".to_owned(),
            phase: "Active".to_owned(),
            started_ms: 1_000,
            timeout_ms: 300_000,
            deadline_ms: 301_000,
            ..Migration::default()
        }
    }

    #[test]
    fn replicas_align() {
        let reply = ListReplicasReply {
            replicas: vec![replica(22, "unreachable", None), replica(1, "leader", Some(0))],
        };
        let expected = "\
REPLICA        ID  ADDRESS       ROLE         VOTER  MATCHED  LAG
controller-1   1   127.0.0.1:1   leader       yes    100      0
controller-22  22  127.0.0.1:22  unreachable  yes    -        -
";
        assert_eq!(replicas(&reply), expected);
    }

    #[test]
    fn status_names_the_leader_or_says_that_there_is_none() {
        let mut reply = StatusReply {
            leader_id: Some(1),
            replicas: vec![replica(1, "leader", Some(0))],
            ..Default::default()
        };
        assert!(status(&reply).contains("leader             controller-1 (1)\n"), "{}", status(&reply));
        reply.leader_id = None;
        assert!(status(&reply).contains("none known"));
    }

    #[test]
    fn a_volume_shows_who_holds_it_and_its_exact_size() {
        let text = volume(&Volume {
            id: "pvc-1".to_owned(),
            size_bytes: 10 << 30,
            phase: "Ready".to_owned(),
            attachments: vec![Attachment {
                node_id: "node-a".to_owned(),
                phase: "Granted".to_owned(),
                ..Attachment::default()
            }],
            migration: Some(migration()),
            ledger_time_ms: 13_000,
            ..Volume::default()
        });
        assert!(text.contains("10 GiB (10737418240 bytes)"), "{text}");
        assert!(text.contains("node-a -> node-b Active, 12.0 s of 5 min 0 s"), "{text}");
        assert!(text.contains("node-a  Granted  0"), "{text}");
    }

    #[test]
    fn a_migrations_length_ends_with_it() {
        let ended = Migration {
            ended_ms: Some(2_500),
            outcome: "success".to_owned(),
            decided_by: "operator ann".to_owned(),
            evidence: "source node-a left".to_owned(),
            ..migration()
        };
        let migrations_shown = vec![migration(), ended];
        let reply = ListMigrationsReply {
            migrations: migrations_shown,
            ledger_time_ms: 61_000,
            ..Default::default()
        };
        let text = migrations(&reply);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("1 min 0 s"), "{text}");
        for told in ["success", "1.5 s", "1 min 0 s ago", "operator ann", "source node-a left"] {
            assert!(lines[2].contains(told), "{told}: {text}");
        }
    }

    #[test]
    fn a_history_is_shown_newest_first_and_only_if_it_was_asked_for() {
        let record = |number, at_ms, fact: &str| Record {
            number,
            at_ms,
            fact: fact.to_owned(),
            node_id: "node-a".to_owned(),
            detail: "generation 2".to_owned(),
            ..Record::default()
        };
        let told = Volume {
            history: vec![record(1, 1_000, "Attached"), record(7, 9_000, "Detached")],
            ledger_time_ms: 61_000,
            ..Volume::default()
        };
        let expected = "\
RECORD  AGE        FACT      NODE    MIGRATION  DETAIL
7       52.0 s     Detached  node-a  -          generation 2
1       1 min 0 s  Attached  node-a  -          generation 2
";
        assert!(volume(&told).ends_with(expected), "{}", volume(&told));
        assert!(!volume(&Volume::default()).contains("RECORD"));
    }
}

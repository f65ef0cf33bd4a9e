//! What the tests of the store have in common.

// Each test file uses its own part.
#![allow(dead_code, unreachable_pub)]

use std::io;
use std::path::Path;

use openraft::alias::LeaderIdOf;
use openraft::entry::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft::vote::RaftVote;
use state_machine::{
    BootId, Command, Entry, Generation, LedgerTime, NodeId, Nqn, Problem, ProblemKind, VolumeId,
};
use storage::{
    LogEntry, LogId, LogStore, MAX_ENTRY_BYTES, MachineStore, StorageError, Store, TypeConfig, Vote,
    check_entry_size,
};

pub const TERM: u64 = 3;
pub const REPLICA: u64 = 5;

pub fn open(dir: &Path) -> Store {
    Store::open(dir).expect("the store opens")
}

pub fn leader(term: u64) -> LeaderIdOf<TypeConfig> {
    LeaderIdOf::<TypeConfig>::new(term, REPLICA)
}

pub fn log_id(index: u64) -> LogId {
    LogId { leader_id: leader(TERM).to_committed(), index }
}

pub fn vote(term: u64) -> Vote {
    Vote::from_leader_id(leader(term), false)
}

pub fn blank(index: u64) -> LogEntry {
    LogEntry { log_id: log_id(index), payload: EntryPayload::Blank }
}

/// An entry of a usual size that changes the state.
pub fn register(index: u64) -> LogEntry {
    let node = NodeId::parse(&format!("node-{}", index % 100)).expect("a node id");
    let host_nqn = format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-{index:012}");
    let host_nqn = Nqn::parse(&host_nqn).expect("an NQN");
    let boot = BootId::parse(&format!("00000000-0000-0000-0000-{index:012}")).expect("a boot id");
    let command = Command::RegisterNode { node, boot, replaces: None, host_nqn, max_volumes: 7 };
    let entry = Entry { at: LedgerTime::default(), command };
    LogEntry { log_id: log_id(index), payload: EntryPayload::Normal(entry.into()) }
}

/// A proposal with a message of `message_bytes`.
pub fn proposal(index: u64, message_bytes: usize) -> Entry {
    let message = format!("{index:>message_bytes$}");
    let command = Command::OperationFailed {
        volume: VolumeId::parse("pvc-1").expect("a volume id"),
        generation: Generation(index),
        problem: Problem { kind: ProblemKind::Full, message },
    };
    Entry { at: LedgerTime::default(), command }
}

/// The longest message that [`proposal`] may have.
pub fn longest_message_bytes() -> usize {
    let limit = MAX_ENTRY_BYTES as usize;
    let Err(StorageError::TooLarge { size_bytes, limit_bytes, .. }) = check_entry_size(&proposal(0, limit))
    else {
        panic!("a proposal of more than {limit} bytes was let through")
    };
    (MAX_ENTRY_BYTES + limit_bytes - size_bytes) as usize
}

/// An entry of the largest size that may be proposed.
pub fn largest(index: u64) -> LogEntry {
    let entry = proposal(index, longest_message_bytes());
    LogEntry { log_id: log_id(index), payload: EntryPayload::Normal(entry.into()) }
}

/// Appends without waiting; the receiver tells when the entries are on disk.
pub async fn append(
    log: &mut LogStore,
    entries: Vec<LogEntry>,
) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
    let (sender, flushed) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await?;
    Ok(async move { flushed.await.map_err(io::Error::other)? })
}

pub async fn append_and_wait(log: &mut LogStore, entries: Vec<LogEntry>) -> io::Result<()> {
    append(log, entries).await?.await
}

pub async fn apply(machine: &mut MachineStore, entries: Vec<LogEntry>) {
    let entries = futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(entries).await.expect("entries apply");
}

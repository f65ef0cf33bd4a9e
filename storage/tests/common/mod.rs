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
use state_machine::{BootId, Command, Entry, LedgerTime, NodeId, Nqn};
use storage::{LogEntry, LogId, LogStore, MachineStore, Store, TypeConfig, Vote};

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
    let command = Command::RegisterNode { node, boot, host_nqn, max_volumes: 7 };
    let entry = Entry { at: LedgerTime::default(), command };
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

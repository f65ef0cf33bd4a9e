//! What the limit of an entry is for: nothing gets into sled's files that are never synced, and every command fits.

mod common;

use std::fs;
use std::path::Path;

use common::{append, append_and_wait, apply, largest, log_id, open, register};
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder};
use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, BootId, ByteSize, Command, Entry, FsType,
    Generation, HostAddress, LedgerTime, MAX_MKFS_OPTIONS_BYTES, MAX_NODE_ID_BYTES, MAX_NQN_BYTES,
    MAX_PATH_BYTES, MAX_TEXT_CHARS, MAX_VOLUME_ID_BYTES, MigrationId, MkfsOptions, NodeId, NodeMoment, Nqn,
    Observed, OffProof, Problem, ProblemKind, ReapDecision, VolumeId, VolumeName, VolumeParameters,
};
use storage::check_entry_size;
use tempfile::tempdir;

/// How many entries of the largest size are written: about a hundred of sled's leaves.
const ENTRIES: u64 = 1500;
/// How many go into one append.
const BATCH_ENTRIES: u64 = 25;
/// Longest text that the executor puts into a problem, in bytes.
const MAX_TEXT_BYTES: usize = 500;

fn blobs(store: &Path) -> Vec<String> {
    let found = fs::read_dir(store.join("log/blobs")).expect("sled's directory");
    found.map(|file| file.expect("sled's directory").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn entries_of_the_largest_size_stay_in_the_file_that_is_synced() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    let mut waiting = Vec::new();
    for first in (0..ENTRIES).step_by(BATCH_ENTRIES as usize) {
        let batch = (first..first + BATCH_ENTRIES).map(largest).collect();
        waiting.push(append(&mut store.log, batch).await.unwrap());
    }
    for flushed in waiting {
        flushed.await.unwrap();
    }
    assert_eq!(blobs(dir.path()), [""; 0]);

    // Removing entries makes sled put the rest of two leaves into one.
    store.log.truncate_after(Some(log_id(ENTRIES - 10))).await.unwrap();
    apply(&mut store.machine, (0..=ENTRIES / 2).map(largest).collect()).await;
    store.machine.build_snapshot().await.unwrap();
    store.log.purge(log_id(ENTRIES / 2)).await.unwrap();
    append_and_wait(&mut store.log, (ENTRIES - 9..ENTRIES).map(largest).collect()).await.unwrap();
    assert_eq!(blobs(dir.path()), [""; 0]);
    drop(store);

    let mut store = open(dir.path());
    let entries = store.log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.len() as u64, ENTRIES - ENTRIES / 2 - 1);
    assert!(entries.into_iter().all(|entry| entry == largest(entry.log_id.index)));
    append_and_wait(&mut store.log, vec![register(ENTRIES)]).await.unwrap();
    assert_eq!(blobs(dir.path()), [""; 0]);
}

/// All kinds of commands that have texts, with every one of them as long as it may be.
fn longest_commands() -> Vec<Command> {
    let name = "n".repeat(MAX_VOLUME_ID_BYTES);
    let volume = VolumeId::parse(&name).expect("as long as it may be");
    let node = NodeId::parse(&"n".repeat(MAX_NODE_ID_BYTES)).expect("as long as it may be");
    let boot = BootId::parse(&name).expect("as long as it may be");
    let nqn = format!("nqn.{}", "n".repeat(MAX_NQN_BYTES - 4));
    let text = "x".repeat(MAX_TEXT_BYTES);
    let problem = Problem { kind: ProblemKind::Full, message: text.clone() };
    let generation = Generation(u64::MAX);
    let moment = NodeMoment { boot: boot.clone(), since_boot_ns: u64::MAX };
    let parameters = VolumeParameters {
        volume_path: AppliancePath::parse(&format!("/{}", "p".repeat(MAX_PATH_BYTES - 1)))
            .expect("as long as it may be"),
        nvme_address: HostAddress::parse(&"a".repeat(MAX_NODE_ID_BYTES)).expect("as long as it may be"),
        nvme_port: 4420,
        fs_type: FsType::Ext4,
        mkfs_options: Some(
            MkfsOptions::parse(&format!("-O {}", "f".repeat(MAX_MKFS_OPTIONS_BYTES - 3)))
                .expect("as long as it may be"),
        ),
        ctrl_loss_tmo_seconds: -1,
        fast_io_fail_tmo_seconds: 30,
        reconnect_delay_seconds: 2,
        keep_alive_tmo_seconds: 5,
        nr_io_queues: Some(128),
        migration_timeout_seconds: 300,
        same_vm_check: true,
    };
    let mode = AttachmentMode {
        access_mode: AccessMode::MultiNodeMultiWriter,
        access_type: AccessType::Block,
        read_only: false,
    };
    let (id, of) = (volume.clone(), || volume.clone());
    // The longest characters, and more of them than fit.
    let long = || Some("𝄞".repeat(MAX_TEXT_CHARS + 1));
    let observed = Observed { other_users: long(), vm: long(), ..Observed::default() };
    vec![
        Command::CreateVolume {
            id,
            name: VolumeName::parse(&name).expect("as long as it may be"),
            required: ByteSize::exactly(4096).expect("as long as it may be"),
            limit_bytes: Some(u64::MAX),
            parameters,
        },
        Command::OperationFailed { volume: of(), generation, problem: problem.clone() },
        Command::OperationAbandoned { volume: of(), generation, problem: problem.clone() },
        Command::GrantFailed { volume: of(), node: node.clone(), generation, problem },
        Command::Publish { volume: of(), node: node.clone(), mode, observed: observed.bounded() },
        Command::Unpublish { volume: of(), node: Some(node.clone()), require_proof: true },
        Command::RegisterNode {
            node: node.clone(),
            boot: boot.clone(),
            replaces: Some(boot),
            host_nqn: Nqn::parse(&nqn).expect("as long as it may be"),
            max_volumes: u32::MAX,
        },
        Command::PermitConnect { volume: of(), node: node.clone(), generation, moment: moment.clone() },
        Command::ReportDisconnected { volume: of(), node: node.clone(), moment },
        Command::Reap {
            volume: of(),
            migration: MigrationId(u64::MAX),
            decision: ReapDecision { stale: node.clone(), decided_by: text.clone(), evidence: text },
        },
        Command::NodeIsOff {
            node,
            volume: Some(of()),
            up_to: generation,
            words: u64::MAX,
            proof: OffProof::Operator { name: "n".repeat(MAX_NODE_ID_BYTES) },
        },
    ]
}

#[test]
fn every_command_fits_with_all_its_texts_as_long_as_they_may_be() {
    for command in longest_commands() {
        let entry = Entry { at: LedgerTime(u64::MAX), command };
        check_entry_size(&entry).unwrap_or_else(|error| panic!("{error}: {entry:?}"));
    }
}

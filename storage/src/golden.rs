//! The bytes of every record version, as they are on disks. What is here must stay readable for ever: a new layout
//! is a new version beside the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};
use std::path::Path;

use openraft::alias::LeaderIdOf;
use openraft::entry::EntryPayload;
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{Membership, RaftTypeConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, BootId, ByteSize, Command, Entry, FsType,
    Generation, HostAddress, LedgerTime, MigrationId, MkfsOptions, NodeId, NodeMoment, Nqn, Observed,
    OffProof, Problem, ProblemKind, ReapDecision, State, VmiObservation, VolumeId, VolumeName,
    VolumeParameters,
};

use crate::format::{MAX_ENTRY_BYTES, decode, encode};
use crate::snapshot::Header;
use crate::types::{LogEntry, LogId, ReplicaNode, SnapshotMeta, StoredMembership, TypeConfig, Vote};

type Payload = <TypeConfig as RaftTypeConfig>::Payload;

/// Encodes to exactly `expected`, given in hexadecimal, and back.
fn assert_golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, expected: &str) {
    let bytes = encode("a value", value, MAX_ENTRY_BYTES).unwrap();
    let found = bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    assert_eq!(found, expected, "the bytes of {value:?} have changed");
    assert_eq!(decode::<T>("a value", &bytes, MAX_ENTRY_BYTES, Path::new("")).unwrap(), *value);
}

fn leader() -> LeaderIdOf<TypeConfig> {
    LeaderIdOf::<TypeConfig>::new(2, 0x11)
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: leader().to_committed(), index }
}

fn membership() -> Membership<u64, ReplicaNode> {
    let node = ReplicaNode { name: "r0".to_owned(), address: "h:1".to_owned() };
    Membership::new(vec![BTreeSet::from([0x11])], BTreeMap::from([(0x11, node)])).unwrap()
}

fn node() -> NodeId {
    NodeId::parse("n1").unwrap()
}

fn volume() -> VolumeId {
    VolumeId::parse("pvc-1").unwrap()
}

fn entry(payload: Payload) -> LogEntry {
    LogEntry { log_id: log_id(3), payload }
}

#[test]
fn vote_version_1() {
    assert_golden(&Vote::from_leader_id(leader(), true), "00000000020000000000000001110000000000000001");
}

#[test]
fn log_ids_version_1() {
    assert_golden(&log_id(0x0304), "0000000002000000000000000403000000000000");
    assert_golden(&Some(log_id(0x0304)), "000000000102000000000000000403000000000000");
    assert_golden(&None::<LogId>, "0000000000");
}

#[test]
fn entries_version_1() {
    assert_golden(&entry(EntryPayload::Blank), "000000000200000000000000030000000000000000000000");
    assert_golden(
        &entry(EntryPayload::Membership(membership())),
        "00000000020000000000000003000000000000000200000001000000000000000100000000000000\
         11000000000000000100000000000000110000000000000002000000000000007230030000000000\
         0000683a31",
    );
    let proposal = Entry { at: LedgerTime(0x0506), command: attach(&node()) }.into();
    assert_golden(
        &entry(EntryPayload::Normal(proposal)),
        "00000000020000000000000003000000000000000100000006050000000000000b00000005000000\
         000000007076632d3102000000000000006e3104000000000000000001000000\
         00010a0000000000000064656661756c742f766d0101f0000000",
    );
}

#[test]
fn snapshot_header_version_1() {
    let last_membership = StoredMembership::new(Some(log_id(1)), membership());
    let meta = SnapshotMeta { last_log_id: Some(log_id(9)), last_membership };
    assert_golden(
        &Header { meta, body_bytes: 0x0708 },
        "00000000010200000000000000090000000000000001020000000000000001000000000000000100\
         00000000000001000000000000001100000000000000010000000000000011000000000000000200\
         00000000000072300300000000000000683a3100000000000000000807000000000000",
    );
}

fn parameters() -> VolumeParameters {
    VolumeParameters {
        volume_path: AppliancePath::parse("/pool").unwrap(),
        nvme_address: HostAddress::parse("10.0.0.1").unwrap(),
        nvme_port: 4420,
        fs_type: FsType::Ext4,
        mkfs_options: Some(MkfsOptions::parse("-m 0 -O ^has_journal").unwrap()),
        ctrl_loss_tmo_seconds: -1,
        fast_io_fail_tmo_seconds: 30,
        reconnect_delay_seconds: 2,
        keep_alive_tmo_seconds: 5,
        nr_io_queues: Some(4),
        migration_timeout_seconds: 300,
        same_vm_check: true,
    }
}

fn attach(node: &NodeId) -> Command {
    Command::Publish {
        volume: volume(),
        node: node.clone(),
        mode: AttachmentMode {
            access_mode: AccessMode::MultiNodeMultiWriter,
            access_type: AccessType::Block,
            read_only: false,
        },
        observed: Observed {
            vmi: VmiObservation::Migrating,
            other_users: None,
            vm: Some("default/vm".to_owned()),
            one_publish_per_vm: true,
            least_timeout_seconds: Some(240),
        },
    }
}

fn register(node: &NodeId) -> Command {
    let boot = BootId::parse("boot-1").unwrap();
    let host_nqn = Nqn::parse("nqn.2014-08.org.nvmexpress:uuid:1").unwrap();
    Command::RegisterNode {
        node: node.clone(),
        boot: boot.clone(),
        replaces: Some(boot),
        host_nqn,
        max_volumes: 4,
    }
}

/// A volume's life up to a migration that is overdue, with every command in it.
fn ledger_commands() -> Vec<Command> {
    let (volume, first, second) = (volume(), node(), NodeId::parse("n2").unwrap());
    let generation = Generation;
    let problem = Problem { kind: ProblemKind::Unavailable, message: "no answer".to_owned() };
    let moment = NodeMoment { boot: BootId::parse("boot-1").unwrap(), since_boot_ns: 77 };
    let decision =
        ReapDecision { stale: first.clone(), decided_by: "x".to_owned(), evidence: "y".to_owned() };
    vec![
        Command::SetClusterVersion { version: 1 },
        register(&first),
        register(&second),
        Command::CreateVolume {
            id: volume.clone(),
            name: VolumeName::parse("pvc-1").unwrap(),
            required: ByteSize::exactly(4096).unwrap(),
            limit_bytes: Some(1 << 30),
            parameters: parameters(),
        },
        Command::OperationFailed {
            volume: volume.clone(),
            generation: generation(1),
            problem: problem.clone(),
        },
        Command::SlotWasFree { volume: volume.clone(), generation: generation(1) },
        Command::VolumeCreated { volume: volume.clone(), generation: generation(1) },
        Command::ExpandVolume {
            volume: volume.clone(),
            required: ByteSize::exactly(8192).unwrap(),
            limit_bytes: None,
        },
        Command::VolumeExpanded { volume: volume.clone(), generation: generation(2) },
        Command::ExpandVolume {
            volume: volume.clone(),
            required: ByteSize::exactly(12288).unwrap(),
            limit_bytes: None,
        },
        Command::OperationAbandoned {
            volume: volume.clone(),
            generation: generation(3),
            problem: problem.clone(),
        },
        attach(&first),
        Command::GrantFailed {
            volume: volume.clone(),
            node: first.clone(),
            generation: generation(4),
            problem,
        },
        Command::ExportConfirmed { volume: volume.clone(), node: first.clone(), generation: generation(4) },
        Command::PermitConnect {
            volume: volume.clone(),
            node: first.clone(),
            generation: generation(4),
            moment: moment.clone(),
        },
        attach(&second),
        Command::Tick,
        Command::Tick,
        Command::Tick,
        Command::Tick,
        Command::Tick,
        Command::Reap { volume: volume.clone(), migration: MigrationId(1), decision },
        Command::Unpublish { volume: volume.clone(), node: Some(first.clone()), require_proof: true },
        Command::ReportDisconnected { volume: volume.clone(), node: first, moment },
        Command::NodeIsOff {
            node: second,
            volume: Some(volume.clone()),
            up_to: generation(8),
            words: 9,
            proof: OffProof::Operator { name: "ann".to_owned() },
        },
        Command::DeleteVolume { volume: volume.clone() },
        Command::VolumeDeleted { volume, generation: generation(9) },
    ]
}

#[test]
fn commands_and_state_version_1() {
    let mut state = State::default();
    let mut commands = Vec::new();
    for (at, command) in ledger_commands().into_iter().enumerate() {
        let entry = Entry { at: LedgerTime(at as u64 * 60_000), command };
        let bytes = encode("an entry", &entry, MAX_ENTRY_BYTES).unwrap();
        assert_eq!(decode::<Entry>("an entry", &bytes, MAX_ENTRY_BYTES, Path::new("")).unwrap(), entry);
        commands.extend(bytes);
        state.apply(entry);
    }
    let bytes = encode("a state", &state, MAX_ENTRY_BYTES).unwrap();
    assert_eq!(decode::<State>("a state", &bytes, MAX_ENTRY_BYTES, Path::new("")).unwrap(), state);
    assert_eq!(
        (hash(&commands).as_str(), hash(&bytes).as_str()),
        (
            "f4093c64a70df449e958b1c933702af443116ff4a40f9a61867f2487fd0f711a",
            "037b9672be5e484c5f763ece2b88c6c2097feb90b6fad9915d8c843fadaf0bd7"
        )
    );
}

#[test]
fn commands_of_cluster_version_2() {
    let entry = |command| Entry { at: LedgerTime(0x0506), command };
    let epoch = entry(Command::RaiseEpoch { epoch: 7 });
    assert_golden(&epoch, "0000000006050000000000001500000007000000");
    let end = Command::Restore { backup: "b".to_owned(), piece: Box::default(), volumes: Some(0x0708) };
    let empty_state = "00".repeat(96);
    let expected =
        format!("0000000006050000000000001400000001000000000000006201000000{empty_state}010807000000000000");
    assert_golden(&entry(end), &expected);
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

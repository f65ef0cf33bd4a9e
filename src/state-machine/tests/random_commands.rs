//! Random command sequences: every invariant after every command, and what only a history can show.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, AttachmentPhase, BootId, ByteSize, Command, Entry,
    Fact, FsType, Generation, HostAddress, LedgerTime, MigrationId, MigrationPhase, NodeId, NodeMoment, Nqn,
    Observed, OffProof, Problem, ProblemKind, ReapDecision, Response, State, VmiObservation, VolumeId,
    VolumeName, VolumeParameters, plan,
};

const VOLUMES: [&str; 2] =
    ["pvc-00000000-0000-4000-8000-000000000001", "pvc-00000000-0000-4000-8000-000000000002"];
const NODES: [&str; 4] = ["a", "b", "c", "d"];

/// A command in which generations, migrations and times are relative to what the ledger has.
#[derive(Debug, Clone)]
enum Draft {
    Create {
        volume: usize,
        gibibytes: u64,
    },
    Expand {
        volume: usize,
        gibibytes: u64,
    },
    Delete {
        volume: usize,
    },
    /// Carries out one of the planned steps, well or badly.
    Settle {
        pick: usize,
        how: usize,
    },
    /// An outcome of a generation that may have passed.
    Late {
        volume: usize,
        node: usize,
        back: u64,
        what: usize,
    },
    Publish {
        volume: usize,
        node: usize,
        mode: usize,
        seen: usize,
    },
    Unpublish {
        volume: usize,
        node: Option<usize>,
        require_proof: bool,
    },
    Register {
        node: usize,
        boot: usize,
        max_volumes: u32,
    },
    Permit {
        volume: usize,
        node: usize,
        boot: usize,
        age: u64,
    },
    Off {
        volume: usize,
        node: usize,
        boot: usize,
        age: u64,
    },
    Reap {
        volume: usize,
        node: usize,
        back: u64,
    },
    NodeOff {
        node: usize,
        volume: Option<usize>,
        back: u64,
    },
    Tick,
    Version,
}

fn drafts() -> impl Strategy<Value = Draft> {
    let (volume, node, boot) = (0..VOLUMES.len(), 0..NODES.len(), 0..3_usize);
    prop_oneof![
        3 => (volume.clone(), 1..3_u64).prop_map(|(volume, gibibytes)| Draft::Create { volume, gibibytes }),
        1 => (volume.clone(), 1..4_u64).prop_map(|(volume, gibibytes)| Draft::Expand { volume, gibibytes }),
        1 => volume.clone().prop_map(|volume| Draft::Delete { volume }),
        8 => (0..8_usize, 0..8_usize).prop_map(|(pick, how)| Draft::Settle { pick, how }),
        1 => (volume.clone(), node.clone(), 0..4_u64, 0..6_usize)
            .prop_map(|(volume, node, back, what)| Draft::Late { volume, node, back, what }),
        8 => (volume.clone(), node.clone(), 0..8_usize, 0..9_usize)
            .prop_map(|(volume, node, mode, seen)| Draft::Publish { volume, node, mode, seen }),
        4 => (volume.clone(), prop::option::weighted(0.9, node.clone()), prop::bool::weighted(0.9))
            .prop_map(|(volume, node, require_proof)| Draft::Unpublish { volume, node, require_proof }),
        3 => (node.clone(), boot.clone(), 0..3_u32)
            .prop_map(|(node, boot, max_volumes)| Draft::Register { node, boot, max_volumes }),
        5 => (volume.clone(), node.clone(), boot.clone(), 0..3_u64)
            .prop_map(|(volume, node, boot, age)| Draft::Permit { volume, node, boot, age }),
        4 => (volume.clone(), node.clone(), boot, 0..3_u64)
            .prop_map(|(volume, node, boot, age)| Draft::Off { volume, node, boot, age }),
        2 => (volume.clone(), node.clone(), 0..2_u64)
            .prop_map(|(volume, node, back)| Draft::Reap { volume, node, back }),
        1 => (node, prop::option::of(volume), 0..4_u64)
            .prop_map(|(node, volume, back)| Draft::NodeOff { node, volume, back }),
        2 => Just(Draft::Tick),
        1 => Just(Draft::Version),
    ]
}

fn volume(index: usize) -> VolumeId {
    VolumeId::parse(VOLUMES[index]).unwrap()
}

fn node(index: usize) -> NodeId {
    NodeId::parse(NODES[index]).unwrap()
}

fn boot(index: usize) -> BootId {
    BootId::parse(&format!("boot-{index}")).unwrap()
}

fn size(gibibytes: u64) -> ByteSize {
    ByteSize::at_least(gibibytes << 30).unwrap()
}

/// Mostly RWX block, so that migrations happen.
fn mode(index: usize) -> AttachmentMode {
    let block =
        |access_mode| AttachmentMode { access_mode, access_type: AccessType::Block, read_only: false };
    let mount = AccessType::Mount { fs_type: FsType::Ext4 };
    match index {
        0 => block(AccessMode::SingleNodeWriter),
        1 => AttachmentMode { access_type: mount, ..block(AccessMode::SingleNodeMultiWriter) },
        2 => AttachmentMode { access_type: mount, ..block(AccessMode::MultiNodeMultiWriter) },
        3 => AttachmentMode { read_only: true, ..block(AccessMode::MultiNodeMultiWriter) },
        _ => block(AccessMode::MultiNodeMultiWriter),
    }
}

fn parameters() -> VolumeParameters {
    VolumeParameters {
        migration_timeout_seconds: 30,
        ..VolumeParameters::with_defaults(
            AppliancePath::parse("/pool/csi").unwrap(),
            HostAddress::parse("127.0.0.1").unwrap(),
            4420,
        )
    }
}

/// Turns a draft into a command for the ledger as it stands.
fn resolve(draft: Draft, state: &State, moment_ns: u64) -> Command {
    let newest = state
        .volumes()
        .values()
        .flat_map(|v| v.attachments.values().map(|a| a.generation).chain([v.generation]))
        .max()
        .unwrap_or_default();
    let moment =
        |index, age: u64| NodeMoment { boot: boot(index), since_boot_ns: moment_ns.saturating_sub(age * 7) };
    match draft {
        Draft::Create { volume: v, gibibytes } => Command::CreateVolume {
            id: volume(v),
            name: VolumeName::parse(VOLUMES[v]).unwrap(),
            required: size(gibibytes),
            limit_bytes: None,
            parameters: parameters(),
        },
        Draft::Expand { volume: v, gibibytes } => {
            Command::ExpandVolume { volume: volume(v), required: size(gibibytes), limit_bytes: None }
        }
        Draft::Delete { volume: v } => Command::DeleteVolume { volume: volume(v) },
        Draft::Settle { pick, how } => settle(state, pick, how),
        Draft::Late { volume: v, node: n, back, what } => {
            let generation = Generation(newest.0.saturating_sub(back));
            late(volume(v), node(n), generation, what)
        }
        Draft::Publish { volume: v, node: n, mode: m, seen } => {
            Command::Publish { volume: volume(v), node: node(n), mode: mode(m), observed: observed(seen) }
        }
        Draft::Unpublish { volume: v, node: n, require_proof } => {
            Command::Unpublish { volume: volume(v), node: n.map(node), require_proof }
        }
        Draft::Register { node: n, boot: b, max_volumes } => Command::RegisterNode {
            node: node(n),
            boot: boot(b),
            replaces: state.nodes().get(&node(n)).map(|node| node.boot.clone()),
            host_nqn: Nqn::parse("nqn.2014-08.org.nvmexpress:uuid:x").unwrap(),
            max_volumes,
        },
        Draft::Permit { volume: v, node: n, boot: b, age } => {
            let attachment = state.volume(&volume(v)).and_then(|v| v.attachments.get(&node(n)));
            let generation = attachment.map_or(newest, |a| a.generation);
            Command::PermitConnect { volume: volume(v), node: node(n), generation, moment: moment(b, age) }
        }
        Draft::Off { volume: v, node: n, boot: b, age } => {
            Command::ReportDisconnected { volume: volume(v), node: node(n), moment: moment(b, age) }
        }
        Draft::Reap { volume: v, node: n, back } => {
            let running = state.volume(&volume(v)).and_then(|v| v.migration.as_ref()).map_or(0, |m| m.id.0);
            let decision = ReapDecision {
                stale: node(n),
                decided_by: "proptest".to_owned(),
                evidence: "drawn".to_owned(),
            };
            let migration = MigrationId(running.saturating_sub(back));
            Command::Reap { volume: volume(v), migration, decision }
        }
        Draft::NodeOff { node: n, volume: v, back } => {
            let up_to = Generation(newest.0.saturating_sub(back));
            let proof = [OffProof::OutOfService, OffProof::NodeDeleted][n % 2].clone();
            let words = state.nodes().get(&node(n)).map_or(0, |node| node.words).saturating_sub(back);
            Command::NodeIsOff { node: node(n), volume: v.map(volume), up_to, words, proof }
        }
        Draft::Tick => Command::Tick,
        Draft::Version => Command::SetClusterVersion { version: 1 },
    }
}

fn observed(index: usize) -> Observed {
    let seen = |vmi| Observed { vmi, ..Observed::default() };
    match index {
        0 => seen(VmiObservation::NotMigrating),
        1 => seen(VmiObservation::Migrating),
        2 => Observed { least_timeout_seconds: Some(45), ..seen(VmiObservation::Migrating) },
        3 => Observed { other_users: Some("pods p and q".to_owned()), ..Observed::default() },
        4 | 5 => Observed { vm: Some("vm".to_owned()), one_publish_per_vm: true, ..Observed::default() },
        _ => Observed::default(),
    }
}

fn settle(state: &State, pick: usize, how: usize) -> Command {
    use state_machine::StepKind;
    let steps = plan(state);
    if steps.is_empty() {
        return Command::Tick;
    }
    let step = steps[pick % steps.len()].clone();
    let (volume, generation) = (step.volume, step.generation);
    let problem = Problem { kind: ProblemKind::Unavailable, message: "drawn".to_owned() };
    match (step.kind, how) {
        (StepKind::ConfirmExport { node }, 0) => Command::GrantFailed { volume, node, generation, problem },
        (StepKind::ConfirmExport { node }, _) => Command::ExportConfirmed { volume, node, generation },
        (_, 0) => Command::OperationFailed { volume, generation, problem },
        (StepKind::InspectSlot | StepKind::Create | StepKind::Expand { .. }, 1) => {
            Command::OperationAbandoned { volume, generation, problem }
        }
        (StepKind::InspectSlot, _) => Command::SlotWasFree { volume, generation },
        (StepKind::Create, _) => Command::VolumeCreated { volume, generation },
        (StepKind::Expand { .. }, _) => Command::VolumeExpanded { volume, generation },
        (StepKind::Delete, _) => Command::VolumeDeleted { volume, generation },
    }
}

fn late(volume: VolumeId, node: NodeId, generation: Generation, what: usize) -> Command {
    match what {
        0 => Command::SlotWasFree { volume, generation },
        1 => Command::VolumeCreated { volume, generation },
        2 => Command::VolumeExpanded { volume, generation },
        3 => Command::VolumeDeleted { volume, generation },
        _ => Command::ExportConfirmed { volume, node, generation },
    }
}

type Generations = BTreeMap<(VolumeId, NodeId), Generation>;

fn generations(state: &State) -> Generations {
    let all = state.volumes().iter().flat_map(|(id, volume)| {
        volume.attachments.iter().map(move |(node, a)| ((id.clone(), node.clone()), a.generation))
    });
    all.collect()
}

/// What one command may do to attachments, by its kind.
fn check_step(
    before: &State,
    after: &State,
    command: &Command,
    response: &Response,
    newest: &mut Generation,
) {
    let (old, new) = (generations(before), generations(after));
    for (key, generation) in &new {
        match old.get(key) {
            Some(kept) => assert_eq!(kept, generation, "an attachment changed its generation"),
            None => {
                assert!(*generation > *newest, "a generation came back: {generation} after {newest}");
                let published = matches!(command, Command::Publish { volume, node, .. } if *key == (volume.clone(), node.clone()));
                assert!(published, "{command:?} attached {key:?}");
            }
        }
    }
    let all = after
        .volumes()
        .values()
        .flat_map(|v| v.attachments.values().map(|a| a.generation).chain([v.generation]));
    *newest = all.max().unwrap_or_default().max(*newest);
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        let allowed = matches!(
            command,
            Command::Unpublish { .. }
                | Command::ReportDisconnected { .. }
                | Command::RegisterNode { .. }
                | Command::Reap { .. }
                | Command::NodeIsOff { .. }
        );
        assert!(allowed, "{command:?} detached {key:?}");
        if let Command::NodeIsOff { node, up_to, words, .. } = command {
            let heard = before.nodes()[node].words;
            assert!(key.1 == *node && old[key] <= *up_to && heard <= *words, "{command:?} detached {key:?}");
        }
    }
    check_records(before, after, &old, &new);
    if matches!(response, Response::Refused(_)) {
        assert_eq!(before.volumes().keys().collect::<Vec<_>>(), after.volumes().keys().collect::<Vec<_>>());
        assert_eq!(old, new, "a refusal attached or detached");
    }
    for volume in after.volumes().values().filter(|volume| volume.attachments.len() == 2) {
        refuses_a_third(after, volume);
    }
    for (key, _) in old.iter().filter(|(key, _)| new.contains_key(*key)) {
        let phase = |state: &State| state.volumes()[&key.0].attachments[&key.1].phase;
        let back = phase(before) == AttachmentPhase::Revoking && phase(after) != AttachmentPhase::Revoking;
        let spared = before.volumes()[&key.0].cut_off.contains(&key.1) && {
            let volume = &after.volumes()[&key.0];
            volume.attachments.len() == 1 && volume.migration.is_none() && volume.cut_off.is_empty()
        };
        assert!(!back || spared, "{command:?} took a revocation back");
    }
}

/// What a command did to attachments and migrations is in the history, once.
fn check_records(before: &State, after: &State, old: &Generations, new: &Generations) {
    let records: Vec<_> = after.records_after(before.last_record()).collect();
    let count =
        |is: &dyn Fn(&VolumeId, &Fact) -> bool| records.iter().filter(|(id, r)| is(id, &r.fact)).count();
    for (id, volume) in before.volumes() {
        let kept = after.volume(id).map_or(0, |volume| volume.history.len());
        assert!(after.volume(id).is_none() || kept >= volume.history.len(), "history of {id} got shorter");
    }
    for (volume, node) in old.keys().filter(|key| !new.contains_key(*key)) {
        let is = |id: &VolumeId, fact: &Fact| matches!(fact, Fact::Detached { node: n, .. } if n == node && id == volume);
        assert_eq!(count(&is), 1, "{node} left {volume}");
    }
    let began = after.volumes().values().filter(|v| {
        let then = before.volume(&v.id).and_then(|v| v.migration.as_ref()).map(|m| m.id);
        v.migration.as_ref().is_some_and(|migration| Some(migration.id) != then)
    });
    assert_eq!(count(&|_, fact| matches!(fact, Fact::MigrationStarted { .. })), began.count());
    let ended = before.volumes().values().filter(|v| {
        let now = after.volume(&v.id).and_then(|v| v.migration.as_ref()).map(|m| m.id);
        v.migration.as_ref().is_some_and(|migration| Some(migration.id) != now)
    });
    assert_eq!(count(&|_, fact| matches!(fact, Fact::MigrationEnded { .. })), ended.count());
    let is_overdue = |state: &State, id: &VolumeId| {
        let migration = state.volume(id).and_then(|volume| volume.migration.as_ref());
        migration.is_some_and(|migration| migration.phase == MigrationPhase::Overdue)
    };
    let overdue = after.volumes().keys().filter(|id| is_overdue(after, id) && !is_overdue(before, id));
    let named = count(&|_, fact| matches!(fact, Fact::MigrationOverdue { .. }));
    assert!(named >= overdue.count(), "a migration became overdue in silence");
}

/// Whatever the two attachments' phases, a third node stays out.
fn refuses_a_third(state: &State, volume: &state_machine::Volume) {
    for name in NODES {
        let node = NodeId::parse(name).unwrap();
        if volume.attachments.contains_key(&node) {
            continue;
        }
        let command =
            Command::Publish { volume: volume.id.clone(), node, mode: mode(7), observed: observed(1) };
        let response = state.clone().apply(Entry { at: state.clock(), command });
        assert!(matches!(response, Response::Refused(_)), "third node {name}: {response:?}");
    }
}

fn encoded(state: &State) -> Vec<u8> {
    bincode::serialize(state).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_invariant_after_every_command(drafts in prop::collection::vec((drafts(), 0..20_000_u64), 1..120)) {
        let mut state = State::default();
        let (mut log, mut now, mut newest) = (Vec::new(), 0, Generation::default());
        for name in 0..NODES.len() {
            let draft = Draft::Register { node: name, boot: 0, max_volumes: 0 };
            log.push(Entry { at: LedgerTime(0), command: resolve(draft, &state, 0) });
            state.apply(log[name].clone());
        }
        for (step, (draft, passed_ms)) in drafts.into_iter().enumerate() {
            now += passed_ms;
            let command = resolve(draft, &state, 10 * (step as u64 + 10));
            let entry = Entry { at: LedgerTime(now), command };
            let before = state.clone();
            let response = state.apply(entry.clone());
            prop_assert_eq!(state.violations(), Vec::<String>::new(), "after {:?}", &entry);
            check_step(&before, &state, &entry.command, &response, &mut newest);
            log.push(entry);
        }
        // The same log gives the same bytes, also through a snapshot taken on the way.
        let mut again = State::default();
        for (index, entry) in log.into_iter().enumerate() {
            again.apply(entry);
            if index % 17 == 0 {
                again = bincode::deserialize(&encoded(&again)).unwrap();
            }
        }
        prop_assert_eq!(encoded(&again), encoded(&state));
    }
}

//! The verdicts, a volume a row: first one that is right on both sides, then what is wrong with each of the others.

use serde_json::{Value, json};
use state_machine::{AppliancePath, BootId, Command, Entry, HostAddress, LedgerTime};

use super::*;
use crate::sessions::Usage;

const ID: &str = "pvc-00000000-0000-4000-8000-000000000001";
const GIB: u64 = 1 << 30;

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn prefix() -> Nqn {
    Nqn::parse("nqn.2000-02.com.mikrotik").unwrap()
}

fn disk() -> Disk {
    Disk {
        volume: VolumeId::parse(ID).unwrap(),
        file_path: format!("/pool/csi/{ID}.img"),
        size_bytes: GIB,
        exported: true,
        nqn: Some(Nqn::of_volume(&prefix(), &VolumeId::parse(ID).unwrap()).unwrap()),
        nvme_port: Some(4420),
        mounted_by_appliance: false,
    }
}

fn volume() -> Value {
    json!({
        "kind": "PersistentVolume",
        "metadata": { "name": ID },
        "spec": {
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "capacity": { "storage": "1Gi" },
            "csi": {
                "driver": csi::DRIVER_NAME, "volumeHandle": ID,
                "volumeAttributes": {
                    "volumePath": "/pool/csi", "nvmeAddress": "192.0.2.1", "nvmePort": "4420",
                    "nqn": format!("nqn.2000-02.com.mikrotik:{ID}"), "keepAliveTmo": "0"
                }
            }
        }
    })
}

fn attachment(node: &str, second: u32, generation: &str) -> Value {
    json!({
        "kind": "VolumeAttachment",
        "metadata": { "name": format!("csi-{node}"), "creationTimestamp": format!("2026-01-01T00:00:0{second}Z") },
        "spec": {
            "attacher": csi::DRIVER_NAME, "nodeName": node, "source": { "persistentVolumeName": ID }
        },
        "status": { "attached": true, "attachmentMetadata": { "generation": generation } }
    })
}

/// Nodes a to c are registered.
fn state() -> State {
    let mut state = State::default();
    for name in ["a", "b", "c"] {
        let command = Command::RegisterNode {
            node: node(name),
            boot: BootId::parse("boot-1").unwrap(),
            replaces: None,
            host_nqn: Nqn::parse(&format!("nqn.2014-08.{name}")).unwrap(),
            max_volumes: 0,
        };
        state.apply(Entry { at: LedgerTime(0), command });
    }
    state
}

struct World {
    disks: Vec<Disk>,
    objects: Vec<Value>,
    told: Vec<(&'static str, Told)>,
    rebuild: bool,
}

impl World {
    fn sound() -> Self {
        Self { disks: vec![disk()], objects: vec![volume()], told: Vec::new(), rebuild: false }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::sound();
        change(&mut world);
        world
    }

    fn rows(&self, state: &State) -> Vec<Row> {
        let file = json!({ "items": self.objects }).to_string();
        let told = self.told.iter().map(|(name, told)| (node(name), told.clone())).collect();
        judge(&Facts {
            disks: &self.disks,
            objects: &Objects::parse(file.as_bytes(), csi::DRIVER_NAME).unwrap(),
            sights: &Sights::from([(VolumeId::parse(ID).unwrap(), told)]),
            state,
            nqn_prefix: &prefix(),
            defaults: &ClassDefaults {
                volume_path: AppliancePath::parse("/elsewhere").unwrap(),
                nvme_address: HostAddress::parse("192.0.2.9").unwrap(),
                nvme_port: 4420,
            },
            rebuild: self.rebuild,
        })
    }

    fn row(&self) -> Row {
        let mut rows = self.rows(&state());
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    fn adopted(&self) -> Volume {
        let row = self.row();
        let Verdict::Adopt(volume) = row.verdict else { panic!("{row:?}") };
        *volume
    }
}

#[test]
fn what_both_sides_say_alike_is_adopted() {
    let volume = World::sound().adopted();
    assert_eq!((volume.size.bytes(), volume.parameters.volume_path.as_str()), (GIB, "/pool/csi"));
    assert!(volume.attachments.is_empty() && volume.migration.is_none());
}

#[test]
fn what_is_not_proven_alike_is_refused_with_the_reason() {
    let set =
        |at: &'static str, to: Value| World::with(|world| *world.objects[0].pointer_mut(at).unwrap() = to);
    let attribute = |name: &str, to: &str| {
        set(&*Box::leak(format!("/spec/csi/volumeAttributes/{name}").into_boxed_str()), json!(to))
    };
    let rows = [
        (World::with(|w| w.disks[0].file_path = "/pool/other.img".to_owned()), "its file"),
        (World::with(|w| w.disks[0].size_bytes = GIB / 2), "size in bytes"),
        (World::with(|w| w.disks[0].nqn = None), "its NQN"),
        (World::with(|w| w.disks[0].nvme_port = None), "its NVMe port"),
        (World::with(|w| w.disks[0].exported = false), "does not export"),
        (World::with(|w| w.disks.clear()), "the appliance does not have it"),
        (World::with(|w| w.objects.clear()), "no PersistentVolume names it"),
        (set("/spec/capacity/storage", json!("2Gi")), "size in bytes"),
        (set("/spec/accessModes", json!(["ReadOnlyMany"])), "ReadOnlyMany"),
        (set("/spec/volumeMode", json!("Filesystem")), "destroy"),
        (set("/metadata/name", json!("by-hand")), "does not have the name"),
        (attribute("volumePath", "/other"), "its file"),
        (attribute("nqn", "nqn.2000-02.com.mikrotik:pvc-1"), "volumeAttributes[nqn]"),
        (attribute("nvmePort", "4421"), "its NVMe port"),
        (World::with(|w| w.objects.push(attachment("z", 1, "1"))), "has not registered"),
        (World::with(|w| w.objects.push(attachment("a", 1, "x"))), "which is no number"),
        (World::with(|w| w.told.push(("z", Told::Connected(Usage::Idle)))), "has not registered"),
    ];
    for (world, why) in rows {
        let row = world.row();
        assert_eq!(row.verdict, Verdict::Refused, "{why}");
        assert!(row.reasons.iter().any(|reason| reason.contains(why)), "{:?}, not {why}", row.reasons);
    }
}

#[test]
fn two_persistent_volumes_of_one_handle_are_both_refused() {
    let rows = World::with(|world| world.objects.push(volume())).rows(&state());
    assert!(rows.len() == 2 && rows.iter().all(|row| row.verdict == Verdict::Refused), "{rows:?}");
}

#[test]
fn whoever_is_attached_or_connected_has_it_and_no_more_than_may() {
    let held = |names: &[(&'static str, u32)], told: &[&'static str], mode: &str| {
        World::with(|world| {
            world.objects[0]["spec"]["accessModes"] = json!([mode]);
            world.objects.extend(names.iter().map(|(name, second)| attachment(name, *second, "70")));
            world.told.extend(told.iter().map(|name| (*name, Told::Connected(Usage::Idle))));
        })
    };
    let volume = held(&[("a", 2)], &["a"], "ReadWriteOnce").adopted();
    assert!(
        volume.attachments.values().all(|a| a.generation == Generation(70)) && volume.attachments.len() == 1
    );
    let volume = held(&[("a", 2), ("b", 1)], &[], "ReadWriteMany").adopted();
    let migration = volume.migration.unwrap();
    assert_eq!((migration.source, migration.target), (node("b"), node("a")), "the older one is the source");
    let volume = held(&[("a", 2)], &["c"], "ReadWriteMany").adopted();
    assert_eq!(volume.attachments[&node("c")].generation, Generation(0), "given out anew");
    for world in [
        held(&[("a", 1), ("b", 2)], &[], "ReadWriteOnce"),
        held(&[("a", 1)], &["b"], "ReadWriteOnce"),
        held(&[("a", 1), ("b", 2)], &["c"], "ReadWriteMany"),
    ] {
        let row = world.row();
        assert!(row.verdict == Verdict::Refused && row.reasons[0].contains("nodes have it"), "{row:?}");
    }
}

#[test]
fn what_nodes_do_not_say_keeps_a_rebuild_and_only_warns_an_adoption() {
    for (rebuild, verdict) in [(true, true), (false, false)] {
        let row = World::with(|world| {
            world.objects.push(attachment("a", 1, "1"));
            world.told.push(("a", Told::Unknown { why: "nothing was heard of it".to_owned() }));
            world.rebuild = rebuild;
        })
        .row();
        assert_eq!(row.verdict == Verdict::Refused, verdict, "{row:?}");
        let said = if rebuild { &row.reasons } else { &row.warnings };
        assert!(said.iter().any(|said| said.contains("nothing was heard")), "{row:?}");
    }
}

#[test]
fn what_the_ledger_has_is_known_or_refused_and_never_changed() {
    let mut state = state();
    state.apply(Entry { at: LedgerTime(0), command: Command::SetClusterVersion { version: 2 } });
    let volume = Box::new(World::sound().adopted());
    let adopt = Command::AdoptVolume { volume, from: "a test".to_owned() };
    state.apply(Entry { at: LedgerTime(0), command: adopt });
    assert_eq!(World::sound().rows(&state)[0].verdict, Verdict::Known);
    let larger = World::with(|world| {
        world.disks[0].size_bytes = 2 * GIB;
        world.objects[0]["spec"]["capacity"]["storage"] = json!("2Gi");
    });
    let row = larger.rows(&state).remove(0);
    assert!(row.verdict == Verdict::Refused && row.reasons[0].contains("other facts"), "{row:?}");
    assert!(World::with(|world| world.objects.clear()).rows(&state).is_empty(), "the ledger's own slot");
}

#[test]
fn a_list_of_something_else_is_refused() {
    for (file, why) in [
        ("not JSON", "no list"),
        (r#"{"items": [{"kind": "Pod"}]}"#, "kind \"Pod\""),
        (r#"{"items": [{"kind": "PersistentVolume", "metadata": {"name": "x"}}]}"#, "PersistentVolume x"),
    ] {
        let said = Objects::parse(file.as_bytes(), csi::DRIVER_NAME).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
}

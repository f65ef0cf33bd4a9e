//! Strings that try to leave their syntax, in every string field of every RPC: each is refused, by name.
//!
//! The fields come from `csi.proto` itself, so that one that is added later is not forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use csi::parse;
use prost::Message;
use proto::csi::v1;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value,
};
use state_machine::{AppliancePath, HostAddress};
use tonic::{Code, Status};

const VOLUME: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff001";
const HOSTILE: &[&str] = &[
    " ",
    "a b",
    " a",
    "a ",
    "a\"b",
    "a'b",
    "a[b",
    "a]b",
    "a;b",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "../a",
    "a/../b",
    "a\0b",
    "a$b",
    "a`b",
    "a\\b",
    "a{b",
    "a|b",
    "a&b",
    "a<b",
    "a*b",
    "a?b",
    "a#b",
    "a!b",
    "é",
    "\u{202e}a",
];
/// Never read, so nothing is refused for them; the test below shows that they are not read.
const UNREAD: &str = "secrets";
/// Answered UNIMPLEMENTED before anything is read.
const NOT_OFFERED: &[&str] =
    &["ControllerModifyVolume", "CreateSnapshot", "DeleteSnapshot", "GetSnapshot", "ListSnapshots"];

type Parse = Box<dyn Fn(&[u8]) -> Result<(), Status>>;

/// An RPC, a request to it in which every string field is set and good, and what parses such a request.
struct Rpc {
    name: &'static str,
    good: Vec<u8>,
    parse: Parse,
}

fn rpc<Q, T>(
    name: &'static str,
    good: Q,
    parse: impl Fn(&Q) -> Result<T, parse::RequestError> + 'static,
) -> Rpc
where
    Q: Message + Default,
{
    let parse = move |bytes: &[u8]| {
        let request = Q::decode(bytes).expect("encoded above");
        parse(&request).map(drop).map_err(Status::from)
    };
    Rpc { name, good: good.encode_to_vec(), parse: Box::new(parse) }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn capability() -> v1::VolumeCapability {
    let mount = MountVolume {
        fs_type: "ext4".to_owned(),
        mount_flags: vec!["noatime".to_owned()],
        volume_mount_group: String::new(),
    };
    v1::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

fn parameters() -> BTreeMap<String, String> {
    map(&[
        ("volumePath", "/pool/volumes"),
        ("nvmeAddress", "192.0.2.1"),
        ("nvmePort", "4420"),
        ("fsType", "ext4"),
        ("mkfsOptions", "-m 0"),
        ("ctrlLossTmo", "600"),
        ("fastIoFailTmo", "30"),
        ("reconnectDelay", "5"),
        ("keepAliveTmo", "5"),
        ("nrIoQueues", "4"),
        ("migrationTimeoutSeconds", "300"),
        ("sameVmCheck", "true"),
    ])
}

fn volume_context() -> BTreeMap<String, String> {
    let mut context = parameters();
    context.remove("fsType");
    context.insert("rdsAddress".to_owned(), "198.51.100.1".to_owned());
    context.insert("nqn".to_owned(), format!("nqn.2000-02.com.mikrotik:{VOLUME}"));
    context.insert("ofANewerVersion".to_owned(), "something".to_owned());
    context
}

fn publish_context() -> BTreeMap<String, String> {
    map(&[
        ("nvme_address", "192.0.2.1"),
        ("nvme_port", "4420"),
        ("nvme_nqn", &format!("nqn.2000-02.com.mikrotik:{VOLUME}")),
        ("fs_type", "ext4"),
        ("generation", "7"),
    ])
}

fn topology() -> v1::Topology {
    v1::Topology { segments: map(&[("topology.kubernetes.io/zone", "a")]) }
}

fn range() -> Option<v1::CapacityRange> {
    Some(v1::CapacityRange { required_bytes: 4096, limit_bytes: 0 })
}

fn controller_rpcs() -> Vec<Rpc> {
    let defaults = || parse::ClassDefaults {
        volume_path: AppliancePath::parse("/pool/volumes").expect("is a path"),
        nvme_address: HostAddress::parse("192.0.2.1").expect("is an address"),
        nvme_port: 4420,
    };
    let volume_id = || VOLUME.to_owned();
    let node_id = || "node-a".to_owned();
    let create = v1::CreateVolumeRequest {
        name: volume_id(),
        volume_capabilities: vec![capability()],
        parameters: parameters(),
        accessibility_requirements: Some(v1::TopologyRequirement {
            requisite: vec![topology()],
            preferred: vec![topology()],
        }),
        ..Default::default()
    };
    let publish = v1::ControllerPublishVolumeRequest {
        volume_id: volume_id(),
        node_id: node_id(),
        volume_capability: Some(capability()),
        volume_context: volume_context(),
        ..Default::default()
    };
    let unpublish = v1::ControllerUnpublishVolumeRequest {
        volume_id: volume_id(),
        node_id: node_id(),
        ..Default::default()
    };
    let validate = v1::ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id(),
        volume_context: volume_context(),
        volume_capabilities: vec![capability()],
        parameters: parameters(),
        ..Default::default()
    };
    let list = v1::ListVolumesRequest { max_entries: 1, starting_token: format!("after:{VOLUME}") };
    let capacity = v1::GetCapacityRequest {
        volume_capabilities: vec![capability()],
        parameters: parameters(),
        accessible_topology: Some(topology()),
    };
    let expand = v1::ControllerExpandVolumeRequest {
        volume_id: volume_id(),
        capacity_range: range(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let delete = v1::DeleteVolumeRequest { volume_id: volume_id(), ..Default::default() };
    let get = v1::ControllerGetVolumeRequest { volume_id: volume_id() };
    vec![
        rpc("CreateVolume", create, move |request| parse::CreateVolume::parse(request, &defaults())),
        rpc("DeleteVolume", delete, parse::DeleteVolume::parse),
        rpc("ControllerPublishVolume", publish, parse::ControllerPublish::parse),
        rpc("ControllerUnpublishVolume", unpublish, parse::ControllerUnpublish::parse),
        rpc("ValidateVolumeCapabilities", validate, parse::ValidateCapabilities::parse),
        rpc("ListVolumes", list, parse::ListVolumes::parse),
        rpc("GetCapacity", capacity, move |request| parse::GetCapacity::parse(request, &defaults())),
        rpc("ControllerExpandVolume", expand, parse::ControllerExpand::parse),
        rpc("ControllerGetVolume", get, parse::ControllerGet::parse),
    ]
}

fn node_rpcs() -> Vec<Rpc> {
    let volume_id = || VOLUME.to_owned();
    let staging_target_path = || "/var/lib/kubelet/plugins/kubernetes.io/csi/x/globalmount".to_owned();
    let target_path = || "/var/lib/kubelet/pods/x/volumes/kubernetes.io~csi/y/mount".to_owned();
    let stage = v1::NodeStageVolumeRequest {
        volume_id: volume_id(),
        publish_context: publish_context(),
        staging_target_path: staging_target_path(),
        volume_capability: Some(capability()),
        volume_context: volume_context(),
        ..Default::default()
    };
    let publish = v1::NodePublishVolumeRequest {
        volume_id: volume_id(),
        publish_context: publish_context(),
        staging_target_path: staging_target_path(),
        target_path: target_path(),
        volume_capability: Some(capability()),
        volume_context: volume_context(),
        ..Default::default()
    };
    let unstage =
        v1::NodeUnstageVolumeRequest { volume_id: volume_id(), staging_target_path: staging_target_path() };
    let unpublish = v1::NodeUnpublishVolumeRequest { volume_id: volume_id(), target_path: target_path() };
    let stats = v1::NodeGetVolumeStatsRequest {
        volume_id: volume_id(),
        volume_path: target_path(),
        staging_target_path: staging_target_path(),
    };
    let expand = v1::NodeExpandVolumeRequest {
        volume_id: volume_id(),
        volume_path: target_path(),
        capacity_range: range(),
        staging_target_path: staging_target_path(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    vec![
        rpc("NodeStageVolume", stage, parse::NodeStage::parse),
        rpc("NodeUnstageVolume", unstage, parse::NodeUnstage::parse),
        rpc("NodePublishVolume", publish, parse::NodePublish::parse),
        rpc("NodeUnpublishVolume", unpublish, parse::NodeUnpublish::parse),
        rpc("NodeGetVolumeStats", stats, parse::NodeStats::parse),
        rpc("NodeExpandVolume", expand, parse::NodeExpand::parse),
    ]
}

fn all_rpcs() -> Vec<Rpc> {
    controller_rpcs().into_iter().chain(node_rpcs()).collect()
}

fn descriptors() -> DescriptorPool {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut compiler = protox::Compiler::new([directory]).expect("the directory is there");
    compiler.include_imports(true).open_file("csi.proto").expect("it compiles");
    compiler.descriptor_pool()
}

/// Every message that differs from `message` by one string, which is `hostile`; with the field's path.
fn with_one_hostile_string(message: &DynamicMessage, hostile: &str) -> Vec<(String, DynamicMessage)> {
    let mut found = Vec::new();
    for field in message.descriptor().fields().filter(|field| field.name() != UNREAD) {
        for (path, value) in hostile_values(message, &field, hostile) {
            let mut changed = message.clone();
            changed.set_field(&field, value);
            found.push((format!("{}{path}", field.name()), changed));
        }
    }
    found
}

fn hostile_values(message: &DynamicMessage, field: &FieldDescriptor, hostile: &str) -> Vec<(String, Value)> {
    let string = || Value::String(hostile.to_owned());
    if field.is_map() {
        let entries = message.get_field(field).as_map().expect("is a map").clone();
        let keys = entries.keys().cloned();
        // A hostile value under each key, and a hostile key.
        let mut changes: Vec<_> = keys.map(|key| (key, string())).collect();
        changes.push((MapKey::String(hostile.to_owned()), Value::String("x".to_owned())));
        let change = |(key, value): (MapKey, Value)| {
            let mut entries = entries.clone();
            entries.insert(key.clone(), value);
            (format!("[{key:?}]"), Value::Map(entries))
        };
        return changes.into_iter().map(change).collect();
    }
    if field.kind() == Kind::String {
        return match field.is_list() {
            true => vec![("[0]".to_owned(), Value::List(vec![string()]))],
            false => vec![(String::new(), string())],
        };
    }
    let Kind::Message(descriptor) = field.kind() else { return Vec::new() };
    let value = message.get_field(field);
    let first = if field.is_list() { value.as_list().and_then(|items| items.first()) } else { Some(&*value) };
    let inner = first.and_then(Value::as_message).cloned().unwrap_or_else(|| DynamicMessage::new(descriptor));
    let wrap = |inner| match field.is_list() {
        true => Value::List(vec![Value::Message(inner)]),
        false => Value::Message(inner),
    };
    let changes = with_one_hostile_string(&inner, hostile).into_iter();
    changes.map(|(path, inner)| (format!(".{path}"), wrap(inner))).collect()
}

#[test]
fn the_table_has_every_rpc_that_takes_strings() {
    let mut expected = BTreeSet::new();
    for service in descriptors().services() {
        if !["csi.v1.Controller", "csi.v1.Node"].contains(&service.full_name()) {
            continue;
        }
        let takes_fields = service.methods().filter(|method| method.input().fields().len() > 0);
        expected.extend(takes_fields.map(|method| method.name().to_owned()));
    }
    let here =
        all_rpcs().iter().map(|rpc| rpc.name).chain(NOT_OFFERED.iter().copied()).map(str::to_owned).collect();
    assert_eq!(expected, here);
}

#[test]
fn the_good_requests_are_good_whatever_their_secrets() {
    let pool = descriptors();
    for Rpc { name, good, parse } in all_rpcs() {
        parse(&good).unwrap_or_else(|status| panic!("{name}: {status}"));
        let descriptor =
            pool.get_message_by_name(&format!("csi.v1.{name}Request")).expect("it has a request");
        let mut request = DynamicMessage::decode(descriptor, good.as_slice()).expect("encoded above");
        if request.descriptor().get_field_by_name(UNREAD).is_some() {
            let secrets = [(MapKey::String("a;b".to_owned()), Value::String("../\0".to_owned()))];
            request.set_field_by_name(UNREAD, Value::Map(secrets.into()));
            parse(&request.encode_to_vec()).unwrap_or_else(|status| panic!("{name}: {status}"));
        }
    }
}

#[test]
fn every_hostile_string_is_refused_by_its_fields_name() {
    let pool = descriptors();
    let long = "a".repeat(300);
    let mut tried = 0;
    for Rpc { name, good, parse } in all_rpcs() {
        let descriptor =
            pool.get_message_by_name(&format!("csi.v1.{name}Request")).expect("it has a request");
        let request = DynamicMessage::decode(descriptor, good.as_slice()).expect("encoded above");
        for hostile in HOSTILE.iter().copied().chain([long.as_str()]) {
            for (path, changed) in with_one_hostile_string(&request, hostile) {
                tried += 1;
                let context = format!("{name} with {path} = {hostile:?}");
                let status = parse(&changed.encode_to_vec()).expect_err(&context);
                assert_eq!(status.code(), Code::InvalidArgument, "{context}: {status}");
                let field = path.split(['.', '[']).next().unwrap_or_default();
                assert!(status.message().starts_with(field), "{context}: {status}");
                assert!(!status.message().contains(char::is_control), "{context}: {status}");
                assert!(status.message().len() < 1000, "{context}: {status}");
            }
        }
    }
    // So that a mistake in the walk cannot pass for a success: about 130 places, 29 strings each.
    assert!(tried > 3000, "{tried}");
}

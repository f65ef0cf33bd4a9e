//! Strings that try to leave their syntax, in every string field of every Controller RPC, through a real socket.
//!
//! They are refused by name, and neither the appliance nor the ledger changes. Secrets are the exception: nobody
//! reads them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::volume_capability::{AccessType, MountVolume};
use proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerPublishVolumeRequest,
    CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, VolumeCapability, VolumeContentSource,
};
use tests::requests::{
    MIB, create, delete, expand, insist, mounted, publish, rwx_block, unpublish, volume_id,
};
use tests::{Csi, Lab};
use tonic::{Code, Status};

/// What a caller might try. Every one is refused wherever an identifier is expected.
fn hostile() -> Vec<String> {
    let tricks = [
        "a b",
        " a",
        "a\"b",
        "a'b",
        "a[b",
        "a]b",
        "a;b",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "../a",
        "a/../../b",
        "a$b",
        "`a`",
        "a{b}",
        "a\\b",
        "a\0b",
        "a#b",
        "a=b",
        "\u{7f}",
        "ä",
        "",
    ];
    tricks.iter().map(|trick| (*trick).to_owned()).chain([format!("pvc-{}", "x".repeat(300))]).collect()
}

/// A request, whichever it is.
enum Call {
    Create(Box<CreateVolumeRequest>),
    Delete(String),
    Publish(Box<ControllerPublishVolumeRequest>),
    Unpublish(String, String),
    Validate(Box<ValidateVolumeCapabilitiesRequest>),
    List(ListVolumesRequest),
    Capacity(Box<GetCapacityRequest>),
    Expand(Box<ControllerExpandVolumeRequest>),
    Get(String),
}

impl Call {
    async fn send(self, csi: &Csi) -> Result<(), Status> {
        match self {
            Self::Create(request) => csi.create(*request).await.map(drop),
            Self::Delete(id) => csi.delete(delete(&id)).await.map(drop),
            Self::Publish(request) => csi.publish(*request).await.map(drop),
            Self::Unpublish(id, node) => csi.unpublish(unpublish(&id, &node)).await.map(drop),
            Self::Validate(request) => csi.validate(*request).await.map(drop),
            Self::List(request) => csi.list(request).await.map(drop),
            Self::Capacity(request) => csi.capacity(*request).await.map(drop),
            Self::Expand(request) => csi.expand(*request).await.map(drop),
            Self::Get(volume_id) => csi.get(ControllerGetVolumeRequest { volume_id }).await.map(drop),
        }
    }
}

/// A field, and a request that is fine but for it.
struct Field {
    rpc: &'static str,
    /// As the refusal has to name it.
    name: &'static str,
    /// Whether it may be left empty.
    may_be_empty: bool,
    /// The request with `text` in the field, on a volume that exists.
    with: fn(volume: &str, text: &str) -> Call,
}

const fn required(rpc: &'static str, name: &'static str, with: fn(&str, &str) -> Call) -> Field {
    Field { rpc, name, may_be_empty: false, with }
}

const fn optional(rpc: &'static str, name: &'static str, with: fn(&str, &str) -> Call) -> Field {
    Field { rpc, name, may_be_empty: true, with }
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn mount(volume: MountVolume) -> VolumeCapability {
    VolumeCapability { access_type: Some(AccessType::Mount(volume)), ..mounted() }
}

fn fs_type(text: &str) -> VolumeCapability {
    mount(MountVolume { fs_type: text.to_owned(), ..Default::default() })
}

fn mount_flag(text: &str) -> VolumeCapability {
    mount(MountVolume { mount_flags: vec![text.to_owned()], ..Default::default() })
}

fn mount_group(text: &str) -> VolumeCapability {
    mount(MountVolume { volume_mount_group: text.to_owned(), ..Default::default() })
}

fn topology(key: &str, value: &str) -> Topology {
    Topology { segments: one(key, value) }
}

fn create_with(change: impl FnOnce(&mut CreateVolumeRequest)) -> Call {
    let mut request = create("fine", MIB);
    change(&mut request);
    Call::Create(Box::new(request))
}

fn from(source: Type) -> Call {
    create_with(|request| request.volume_content_source = Some(VolumeContentSource { r#type: Some(source) }))
}

fn publish_with(volume: &str, change: impl FnOnce(&mut ControllerPublishVolumeRequest)) -> Call {
    let mut request = publish(volume, "node-a");
    change(&mut request);
    Call::Publish(Box::new(request))
}

fn validate_with(volume: &str, change: impl FnOnce(&mut ValidateVolumeCapabilitiesRequest)) -> Call {
    let mut request = ValidateVolumeCapabilitiesRequest {
        volume_id: volume.to_owned(),
        volume_capabilities: vec![rwx_block()],
        ..Default::default()
    };
    change(&mut request);
    Call::Validate(Box::new(request))
}

fn capacity_with(change: impl FnOnce(&mut GetCapacityRequest)) -> Call {
    let mut request = GetCapacityRequest::default();
    change(&mut request);
    Call::Capacity(Box::new(request))
}

fn expand_with(volume: &str, capability: VolumeCapability) -> Call {
    let request =
        ControllerExpandVolumeRequest { volume_capability: Some(capability), ..expand(volume, MIB) };
    Call::Expand(Box::new(request))
}

const CREATE: &[Field] = &[
    required("CreateVolume", "name", |_, text| create_with(|r| r.name = text.to_owned())),
    required("CreateVolume", "parameters", |_, text| create_with(|r| r.parameters = one(text, "x"))),
    required("CreateVolume", "volumePath", |_, text| create_with(|r| r.parameters = one("volumePath", text))),
    required("CreateVolume", "nvmeAddress", |_, text| {
        create_with(|r| r.parameters = one("nvmeAddress", text))
    }),
    required("CreateVolume", "nvmePort", |_, text| create_with(|r| r.parameters = one("nvmePort", text))),
    optional("CreateVolume", "fsType", |_, text| create_with(|r| r.parameters = one("fsType", text))),
    required("CreateVolume", "ctrlLossTmo", |_, text| {
        create_with(|r| r.parameters = one("ctrlLossTmo", text))
    }),
    optional("CreateVolume", "mkfsOptions", |_, text| {
        create_with(|r| r.parameters = one("mkfsOptions", text))
    }),
    required("CreateVolume", "fastIoFailTmo", |_, text| {
        create_with(|r| r.parameters = one("fastIoFailTmo", text))
    }),
    required("CreateVolume", "nrIoQueues", |_, text| create_with(|r| r.parameters = one("nrIoQueues", text))),
    required("CreateVolume", "reconnectDelay", |_, text| {
        create_with(|r| r.parameters = one("reconnectDelay", text))
    }),
    required("CreateVolume", "keepAliveTmo", |_, text| {
        create_with(|r| r.parameters = one("keepAliveTmo", text))
    }),
    required("CreateVolume", "migrationTimeoutSeconds", |_, text| {
        create_with(|r| r.parameters = one("migrationTimeoutSeconds", text))
    }),
    required("CreateVolume", "sameVmCheck", |_, text| {
        create_with(|r| r.parameters = one("sameVmCheck", text))
    }),
    required("CreateVolume", "mutable_parameters", |_, text| {
        create_with(|r| r.mutable_parameters = one(text, text))
    }),
    optional("CreateVolume", "fs_type", |_, text| {
        create_with(|r| r.volume_capabilities = vec![fs_type(text)])
    }),
    required("CreateVolume", "mount_flags", |_, text| {
        create_with(|r| r.volume_capabilities = vec![mount_flag(text)])
    }),
    optional("CreateVolume", "volume_mount_group", |_, text| {
        create_with(|r| r.volume_capabilities = vec![mount_group(text)])
    }),
    required("CreateVolume", "volume_content_source", |_, text| {
        from(Type::Snapshot(SnapshotSource { snapshot_id: text.to_owned() }))
    }),
    required("CreateVolume", "volume_content_source", |_, text| {
        from(Type::Volume(VolumeSource { volume_id: text.to_owned() }))
    }),
    required("CreateVolume", "accessibility_requirements.requisite", |_, text| {
        create_with(|r| {
            let requisite = vec![topology(text, "x")];
            r.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: vec![] });
        })
    }),
    required("CreateVolume", "accessibility_requirements.preferred", |_, text| {
        create_with(|r| {
            let preferred = vec![topology(text, text)];
            r.accessibility_requirements = Some(TopologyRequirement { requisite: vec![], preferred });
        })
    }),
];

const OTHERS: &[Field] = &[
    required("DeleteVolume", "volume_id", |_, text| Call::Delete(text.to_owned())),
    required("ControllerPublishVolume", "volume_id", |_, text| publish_with(text, |_| ())),
    required("ControllerPublishVolume", "node_id", |id, text| {
        publish_with(id, |r| r.node_id = text.to_owned())
    }),
    required("ControllerPublishVolume", "volume_context", |id, text| {
        publish_with(id, |r| r.volume_context = one(text, "x"))
    }),
    required("ControllerPublishVolume", "volumePath", |id, text| {
        publish_with(id, |r| r.volume_context = one("volumePath", text))
    }),
    optional("ControllerPublishVolume", "fs_type", |id, text| {
        publish_with(id, |r| r.volume_capability = Some(fs_type(text)))
    }),
    required("ControllerPublishVolume", "mount_flags", |id, text| {
        publish_with(id, |r| r.volume_capability = Some(mount_flag(text)))
    }),
    required("ControllerUnpublishVolume", "volume_id", |_, text| {
        Call::Unpublish(text.to_owned(), "node-a".to_owned())
    }),
    optional("ControllerUnpublishVolume", "node_id", |id, text| {
        Call::Unpublish(id.to_owned(), text.to_owned())
    }),
    required("ValidateVolumeCapabilities", "volume_id", |_, text| validate_with(text, |_| ())),
    required("ValidateVolumeCapabilities", "parameters", |id, text| {
        validate_with(id, |r| r.parameters = one(text, "x"))
    }),
    required("ValidateVolumeCapabilities", "volume_context", |id, text| {
        validate_with(id, |r| r.volume_context = one(text, "x"))
    }),
    required("ValidateVolumeCapabilities", "mutable_parameters", |id, text| {
        validate_with(id, |r| r.mutable_parameters = one(text, text))
    }),
    optional("ListVolumes", "starting_token", |_, text| {
        Call::List(ListVolumesRequest { starting_token: text.to_owned(), max_entries: 0 })
    }),
    required("GetCapacity", "volumePath", |_, text| {
        capacity_with(|r| r.parameters = one("volumePath", text))
    }),
    required("GetCapacity", "parameters", |_, text| capacity_with(|r| r.parameters = one(text, "x"))),
    required("GetCapacity", "accessible_topology", |_, text| {
        capacity_with(|r| r.accessible_topology = Some(topology(text, "x")))
    }),
    required("GetCapacity", "mount_flags", |_, text| {
        capacity_with(|r| r.volume_capabilities = vec![mount_flag(text)])
    }),
    required("ControllerExpandVolume", "volume_id", |_, text| Call::Expand(Box::new(expand(text, MIB)))),
    required("ControllerExpandVolume", "mount_flags", |id, text| expand_with(id, mount_flag(text))),
    required("ControllerGetVolume", "volume_id", |_, text| Call::Get(text.to_owned())),
];

#[tokio::test(flavor = "multi_thread")]
async fn strings_that_leave_their_syntax_go_nowhere() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.follower_name().await?)?;
        let id = volume_id(insist("create", || csi.create(create("victim", MIB))).await?);
        let before = (lab.appliance()?, lab.ledger().await?);
        let mut refused = 0;
        for name in [lab.leader_name().await?, lab.follower_name().await?] {
            let csi = lab.csi(&name)?;
            for field in CREATE.iter().chain(OTHERS) {
                for text in hostile().iter().filter(|text| !(text.is_empty() && field.may_be_empty)) {
                    expect_refused(&csi, &id, field, text).await?;
                    refused += 1;
                }
            }
        }
        println!("{refused} requests were refused");
        let after = (lab.appliance()?, lab.ledger().await?);
        ensure!(before == after, "something changed: {before:?}, then {after:?}");
        Ok(())
    })
    .await
}

async fn expect_refused(csi: &Csi, volume: &str, field: &Field, text: &str) -> Result<()> {
    let what = format!("{} with {text:?} as {}", field.rpc, field.name);
    let answer = (field.with)(volume, text).send(csi).await;
    let status = answer.err().with_context(|| format!("{what} was accepted"))?;
    // The specification's own code for a token that is well-formed, but that nobody gave out.
    let is_strange_token = field.name == "starting_token" && status.code() == Code::Aborted;
    ensure!(is_strange_token || status.code() == Code::InvalidArgument, "{what}: {status}");
    ensure!(
        status.message().contains(field.name),
        "{what} is refused without its name: {}",
        status.message()
    );
    Ok(())
}

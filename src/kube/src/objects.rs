//! Objects of the API, as far as they are read: of each only the fields that become facts are parsed.

use std::time::Instant;

use kube::core::{ApiResource, GroupVersionKind, NotUsed, Object, ObjectMeta, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use state_machine::NodeId;
use thiserror::Error;

mod kubevirt;
pub(crate) mod pod;

use crate::index::{
    AttachmentFact, Change, ClaimFact, ClaimRef, Fact, Health, Index, Kind, NamespaceFact, NodeFact, PodFact,
    SettingsFact, Table, VmiFact, VmimFact, VolumeFact,
};

/// The taint by which somebody vouches that a node is off (KEP 2268).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A kind that is watched.
pub(crate) trait Watched: Fact + Send + Sync + Sized + 'static {
    /// Its kind.
    const KIND: Kind;
    /// Its API group, version and name.
    const API: (&'static str, &'static str, &'static str);
    /// Whether the API server may lack it.
    const MAY_BE_ABSENT: bool = false;
    /// What is parsed.
    type Object: Resource<DynamicType = ApiResource>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static;

    /// The fact of an object; `None` if the driver has no business with it.
    fn read(object: Self::Object, driver: &str) -> Option<Self>;
    /// Where it is kept.
    fn table(index: &mut Index) -> &mut Table<Self>;

    /// How the API server names it.
    fn api_resource() -> ApiResource {
        let (group, version, kind) = Self::API;
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), Self::KIND.plural())
    }
}

fn name(metadata: &ObjectMeta) -> Option<String> {
    metadata.name.clone()
}

fn names(metadata: &ObjectMeta) -> Option<(String, String)> {
    Some((metadata.namespace.clone()?, metadata.name.clone()?))
}

fn node_id(text: Option<&str>) -> Option<NodeId> {
    NodeId::parse(text?).ok()
}

/// `spec` of a Node.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NodeSpec {
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Debug, Clone, Deserialize)]
struct Taint {
    key: String,
}

impl Watched for NodeFact {
    const KIND: Kind = Kind::Node;
    const API: (&'static str, &'static str, &'static str) = ("", "v1", "Node");
    type Object = Object<NodeSpec, NotUsed>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        Some(Self {
            name: name(&object.metadata)?,
            uid: object.metadata.uid?,
            out_of_service: object.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE),
            deleting: object.metadata.deletion_timestamp.is_some(),
        })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.nodes
    }
}

/// `spec` of a PersistentVolume.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeSpec {
    csi: Option<CsiSource>,
    claim_ref: Option<ObjectName>,
    volume_mode: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CsiSource {
    driver: String,
    volume_handle: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ObjectName {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

impl Watched for VolumeFact {
    const KIND: Kind = Kind::PersistentVolume;
    const API: (&'static str, &'static str, &'static str) = ("", "v1", "PersistentVolume");
    type Object = Object<VolumeSpec, NotUsed>;

    fn read(object: Self::Object, driver: &str) -> Option<Self> {
        let csi = object.spec.csi.filter(|csi| csi.driver == driver)?;
        let claim = object.spec.claim_ref.and_then(|claim| {
            let uid = claim.uid.filter(|uid| !uid.is_empty());
            Some(ClaimRef { namespace: claim.namespace?, name: claim.name?, uid })
        });
        let block = object.spec.volume_mode.as_deref() == Some("Block");
        Some(Self { handle: csi.volume_handle, name: name(&object.metadata)?, claim, block })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.volumes
    }
}

impl Watched for ClaimFact {
    const KIND: Kind = Kind::Claim;
    const API: (&'static str, &'static str, &'static str) = ("", "v1", "PersistentVolumeClaim");
    type Object = Object<NotUsed, PhaseStatus>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let (namespace, name) = names(&object.metadata)?;
        let bound = object.status.is_some_and(|status| status.phase == "Bound");
        Some(Self { namespace, name, uid: object.metadata.uid?, bound })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.claims
    }
}

/// `spec` of a VolumeAttachment.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachmentSpec {
    attacher: String,
    node_name: String,
    source: AttachmentSource,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentSource {
    persistent_volume_name: Option<String>,
}

/// `status` of a VolumeAttachment.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct AttachmentStatus {
    #[serde(default)]
    attached: bool,
}

impl Watched for AttachmentFact {
    const KIND: Kind = Kind::VolumeAttachment;
    const API: (&'static str, &'static str, &'static str) = ("storage.k8s.io", "v1", "VolumeAttachment");
    type Object = Object<AttachmentSpec, AttachmentStatus>;

    fn read(object: Self::Object, driver: &str) -> Option<Self> {
        if object.spec.attacher != driver {
            return None;
        }
        Some(Self {
            volume: object.spec.source.persistent_volume_name?,
            name: name(&object.metadata)?,
            node: node_id(Some(&object.spec.node_name))?,
            attached: object.status.is_some_and(|status| status.attached),
            deleting: object.metadata.deletion_timestamp.is_some(),
        })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.attachments
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimName {
    claim_name: String,
}

/// `status` of a claim, or of whatever else only has its phase read.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PhaseStatus {
    #[serde(default)]
    phase: String,
}

impl Watched for NamespaceFact {
    const KIND: Kind = Kind::Namespace;
    const API: (&'static str, &'static str, &'static str) = ("", "v1", "Namespace");
    type Object = Object<NotUsed, NotUsed>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let terminating = object.metadata.deletion_timestamp.is_some();
        Some(Self { name: name(&object.metadata)?, terminating })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.namespaces
    }
}

/// Why a recorded object is none.
#[derive(Debug, Error)]
pub enum RecordedError {
    /// It is of a kind that is not watched.
    #[error("{0:?} is not a kind that is watched")]
    Kind(String),
    /// It does not have the form of its kind.
    #[error("cannot read a {kind}")]
    Form {
        /// The kind.
        kind: Kind,
        /// What is wrong.
        source: serde_json::Error,
    },
}

fn record<W: Watched>(index: &mut Index, driver: &str, object: &Value) -> Result<(), RecordedError> {
    let parsed =
        W::Object::deserialize(object).map_err(|source| RecordedError::Form { kind: W::KIND, source })?;
    if let Some(fact) = W::read(parsed, driver) {
        W::table(index).apply(Change::Is(fact));
    }
    Ok(())
}

impl Index {
    /// An index of just these objects, in the API's JSON, as if each kind had been listed at `as_of`.
    pub fn recorded(driver: &str, objects: &[Value], as_of: Instant) -> Result<Self, RecordedError> {
        let mut index = Self::new();
        for object in objects {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            match kind {
                "Node" => record::<NodeFact>(&mut index, driver, object)?,
                "PersistentVolume" => record::<VolumeFact>(&mut index, driver, object)?,
                "PersistentVolumeClaim" => record::<ClaimFact>(&mut index, driver, object)?,
                "VolumeAttachment" => record::<AttachmentFact>(&mut index, driver, object)?,
                "Pod" => record::<PodFact>(&mut index, driver, object)?,
                "VirtualMachineInstance" => record::<VmiFact>(&mut index, driver, object)?,
                "VirtualMachineInstanceMigration" => record::<VmimFact>(&mut index, driver, object)?,
                "KubeVirt" => record::<SettingsFact>(&mut index, driver, object)?,
                "Namespace" => record::<NamespaceFact>(&mut index, driver, object)?,
                other => return Err(RecordedError::Kind(other.to_owned())),
            }
        }
        for kind in Kind::ALL {
            index.set_health(kind, Health::Current { as_of });
        }
        Ok(index)
    }
}

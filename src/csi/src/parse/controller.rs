//! The Controller service's requests: CSI 1.12, "Controller Service RPC".

use proto::csi::v1;
use state_machine::{
    AppliancePath, AttachmentMode, FsType, MAX_VOLUME_ID_BYTES, NodeId, VolumeId, VolumeName,
    VolumeParameters,
};

use super::capability::CapabilityError;
use super::field::{check_ignored_value, check_key, id, quoted};
use super::{Access, Capability, ClassDefaults, ClassParameters, RequestError, SizeRange};
use crate::context::VolumeContext;

/// What a page token begins with; no volume id has a `:`, so nothing else is taken for one.
const TOKEN_PREFIX: &str = "after:";

/// `CreateVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVolume {
    /// The id that belongs to the name.
    pub volume: VolumeId,
    /// The name.
    pub name: VolumeName,
    /// How large.
    pub size: SizeRange,
    /// All ways in which it is to be usable; at least one.
    pub capabilities: Vec<Capability>,
    /// Its class's parameters, with defaults filled in.
    pub parameters: VolumeParameters,
}

impl CreateVolume {
    /// Parses the request; `defaults` serve where the class says nothing.
    pub fn parse(request: &v1::CreateVolumeRequest, defaults: &ClassDefaults) -> Result<Self, RequestError> {
        let name = id("name", &request.name, VolumeName::parse)?;
        let capabilities = required_capabilities(&request.volume_capabilities)?;
        let size = SizeRange::to_create("capacity_range", request.capacity_range.as_ref())?;
        let mut parameters = ClassParameters::parse("parameters", &request.parameters)?;
        parameters.fs_type = one_fs_type(&capabilities, parameters.fs_type)?;
        if request.volume_content_source.is_some() {
            let problem = "is not supported: volumes cannot be made from snapshots or other volumes yet";
            return Err(RequestError::invalid("volume_content_source", problem));
        }
        refuse_mutable_parameters(&request.mutable_parameters)?;
        if let Some(requirement) = &request.accessibility_requirements {
            // Whether it can be met is for who knows the appliance's place.
            check_topologies("accessibility_requirements.requisite", &requirement.requisite)?;
            check_topologies("accessibility_requirements.preferred", &requirement.preferred)?;
        }
        parameters.check_mkfs_options("parameters", parameters.fs_type.unwrap_or_default())?;
        let parameters = parameters.or_defaults(defaults);
        Ok(Self { volume: VolumeId::for_name(&name), name, size, capabilities, parameters })
    }
}

/// `DeleteVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteVolume {
    /// The volume.
    pub volume: VolumeId,
}

impl DeleteVolume {
    /// Parses the request.
    pub fn parse(request: &v1::DeleteVolumeRequest) -> Result<Self, RequestError> {
        Ok(Self { volume: volume_id(&request.volume_id)? })
    }
}

/// `ControllerPublishVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerPublish {
    /// The volume.
    pub volume: VolumeId,
    /// The node.
    pub node: NodeId,
    /// How it will be used there.
    pub capability: Capability,
    /// Whether only to read.
    pub read_only: bool,
    /// The volume context, which the ledger's own knowledge overrules.
    pub context: VolumeContext,
}

impl ControllerPublish {
    /// Parses the request.
    pub fn parse(request: &v1::ControllerPublishVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let node = id("node_id", &request.node_id, NodeId::parse)?;
        let capability = Capability::parse_required("volume_capability", request.volume_capability.as_ref())?;
        let context = VolumeContext::parse("volume_context", &request.volume_context, &volume)?;
        Ok(Self { volume, node, capability, read_only: request.readonly, context })
    }

    /// What the attachment will be, on a volume whose class has the file system `class_fs_type`.
    pub fn mode(&self, class_fs_type: FsType) -> AttachmentMode {
        self.capability.attachment_mode(class_fs_type, self.read_only)
    }
}

/// `ControllerUnpublishVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerUnpublish {
    /// The volume.
    pub volume: VolumeId,
    /// The node; `None` means all that have it.
    pub node: Option<NodeId>,
}

impl ControllerUnpublish {
    /// Parses the request.
    pub fn parse(request: &v1::ControllerUnpublishVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let node = match request.node_id.as_str() {
            "" => None,
            text => Some(id("node_id", text, NodeId::parse)?),
        };
        Ok(Self { volume, node })
    }
}

/// `ValidateVolumeCapabilitiesRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidateCapabilities {
    /// The volume.
    pub volume: VolumeId,
    /// The capabilities, or why one is not supported: then the answer is OK without `confirmed`.
    pub capabilities: Result<Vec<Capability>, String>,
    /// Class parameters that the volume should have.
    pub parameters: ClassParameters,
    /// The volume context that it should have.
    pub context: VolumeContext,
}

impl ValidateCapabilities {
    /// Parses the request.
    pub fn parse(request: &v1::ValidateVolumeCapabilitiesRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(RequestError::required("volume_capabilities"));
        }
        let capabilities = match Capability::parse_all("volume_capabilities", &request.volume_capabilities) {
            Ok(capabilities) => Ok(capabilities),
            Err(CapabilityError::Unsupported(reason)) => Err(reason.to_string()),
            Err(CapabilityError::Malformed(error)) => return Err(error),
        };
        let parameters = ClassParameters::parse("parameters", &request.parameters)?;
        let context = VolumeContext::parse("volume_context", &request.volume_context, &volume)?;
        refuse_mutable_parameters(&request.mutable_parameters)?;
        Ok(Self { volume, capabilities, parameters, context })
    }
}

/// `ListVolumesRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListVolumes {
    /// Most entries of the page; `None` is no limit.
    pub max_entries: Option<usize>,
    /// The page begins with the first id after this one, which need not exist any more.
    pub after: Option<VolumeId>,
}

impl ListVolumes {
    /// Parses the request.
    pub fn parse(request: &v1::ListVolumesRequest) -> Result<Self, RequestError> {
        let max_entries = usize::try_from(request.max_entries)
            .map_err(|_| RequestError::invalid("max_entries", "must not be negative"))?;
        let after = match request.starting_token.as_str() {
            "" => None,
            token => Some(parse_token("starting_token", token)?),
        };
        Ok(Self { max_entries: (max_entries > 0).then_some(max_entries), after })
    }
}

/// The token of the page that begins after `last`.
pub fn list_token(last: &VolumeId) -> String {
    format!("{TOKEN_PREFIX}{last}")
}

fn parse_token(field: &str, token: &str) -> Result<VolumeId, RequestError> {
    if token.len() > TOKEN_PREFIX.len() + MAX_VOLUME_ID_BYTES {
        return Err(RequestError::invalid(field, format!("{} is too long", quoted(token))));
    }
    check_ignored_value(field, token)?;
    let last = token.strip_prefix(TOKEN_PREFIX).and_then(|text| VolumeId::parse(text).ok());
    last.ok_or_else(|| RequestError::ForeignToken { field: field.to_owned() })
}

/// `GetCapacityRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetCapacity {
    /// The directory whose file system is asked about.
    pub volume_path: AppliancePath,
}

impl GetCapacity {
    /// Parses the request; `defaults` serve where the class says nothing.
    pub fn parse(request: &v1::GetCapacityRequest, defaults: &ClassDefaults) -> Result<Self, RequestError> {
        let capabilities = Capability::parse_all("volume_capabilities", &request.volume_capabilities);
        let capabilities = capabilities.map_err(RequestError::from)?;
        let parameters = ClassParameters::parse("parameters", &request.parameters)?;
        let fs_type = one_fs_type(&capabilities, parameters.fs_type)?;
        parameters.check_mkfs_options("parameters", fs_type.unwrap_or_default())?;
        check_topologies("accessible_topology", request.accessible_topology.as_slice())?;
        Ok(Self { volume_path: parameters.volume_path.unwrap_or_else(|| defaults.volume_path.clone()) })
    }
}

/// `ControllerExpandVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerExpand {
    /// The volume.
    pub volume: VolumeId,
    /// How large it is to be at least.
    pub size: SizeRange,
    /// How it is used, if the caller says so.
    pub capability: Option<Capability>,
}

impl ControllerExpand {
    /// Parses the request.
    pub fn parse(request: &v1::ControllerExpandVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let size = SizeRange::to_expand("capacity_range", request.capacity_range.as_ref())?;
        let capability = Capability::parse_optional("volume_capability", request.volume_capability.as_ref())?;
        Ok(Self { volume, size, capability })
    }
}

/// `ControllerGetVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerGet {
    /// The volume.
    pub volume: VolumeId,
}

impl ControllerGet {
    /// Parses the request.
    pub fn parse(request: &v1::ControllerGetVolumeRequest) -> Result<Self, RequestError> {
        Ok(Self { volume: volume_id(&request.volume_id)? })
    }
}

pub(super) fn volume_id(text: &str) -> Result<VolumeId, RequestError> {
    id("volume_id", text, VolumeId::parse)
}

fn required_capabilities(capabilities: &[v1::VolumeCapability]) -> Result<Vec<Capability>, RequestError> {
    const FIELD: &str = "volume_capabilities";
    if capabilities.is_empty() {
        return Err(RequestError::required(FIELD));
    }
    Ok(Capability::parse_all(FIELD, capabilities)?)
}

/// The one file system that the capabilities and the class agree on, if any of them says one.
fn one_fs_type(capabilities: &[Capability], class: Option<FsType>) -> Result<Option<FsType>, RequestError> {
    let mut agreed = class;
    for (index, capability) in capabilities.iter().enumerate() {
        let wanted = match &capability.access {
            Access::Block => None,
            Access::Mount { fs_type, .. } => *fs_type,
        };
        match (agreed, wanted) {
            (Some(agreed), Some(wanted)) if agreed != wanted => {
                let problem = format!(
                    "is {}, but the class's fsType or another capability says {}; a volume has one file system",
                    wanted.as_str(),
                    agreed.as_str()
                );
                return Err(RequestError::invalid(
                    format!("volume_capabilities[{index}].mount.fs_type"),
                    problem,
                ));
            }
            (agreed_so_far, wanted) => agreed = agreed_so_far.or(wanted),
        }
    }
    Ok(agreed)
}

fn refuse_mutable_parameters(
    parameters: &std::collections::BTreeMap<String, String>,
) -> Result<(), RequestError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let problem = "is not supported: a volume's parameters do not change (leave VolumeAttributesClass out)";
    Err(RequestError::invalid("mutable_parameters", problem))
}

fn check_topologies(field: &str, topologies: &[v1::Topology]) -> Result<(), RequestError> {
    for (key, value) in topologies.iter().flat_map(|topology| &topology.segments) {
        check_key(field, key)?;
        check_ignored_value(&format!("{field}[{key}]"), value)?;
    }
    Ok(())
}

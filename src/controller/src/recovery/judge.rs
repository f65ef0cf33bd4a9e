//! What may be taken in: facts in, a verdict on each volume out. Only what appliance and PersistentVolume say alike is.
//!
//! Who has a volume: each node with a VolumeAttachment that is attached, and each that reports a connection. All of them
//! count, as connected until they say otherwise. Two are taken in for RWX block only, as a migration that begins now,
//! from the older VolumeAttachment to the younger; which way it really goes, the reaper or an unpublish finds out.

use std::collections::{BTreeMap, BTreeSet};

use backend::Disk;
use csi::context::VolumeContext;
use csi::parse::ClassDefaults;
use observer::quantity_bytes;
use state_machine::{
    AccessMode, AccessType, Attachment, AttachmentMode, AttachmentPhase, ByteSize, Connection, FsType,
    Generation, Migration, MigrationId, MigrationPhase, NodeId, Nqn, State, Volume, VolumeId, VolumeName,
    VolumePhase,
};

use super::objects::{CsiSource, Objects, PersistentVolume, VolumeAttachment};
use crate::sessions::Told;

/// What nodes say of each volume; a node that is not in it was not asked.
pub(super) type Sights = BTreeMap<VolumeId, BTreeMap<NodeId, Told>>;

/// All that a verdict rests on.
pub(super) struct Facts<'a> {
    pub(super) disks: &'a [Disk],
    pub(super) objects: &'a Objects,
    pub(super) sights: &'a Sights,
    pub(super) state: &'a State,
    pub(super) nqn_prefix: &'a Nqn,
    pub(super) defaults: &'a ClassDefaults,
    /// The ledger was lost: what nodes say has to be known, not only what Kubernetes says.
    pub(super) rebuild: bool,
}

/// What is to become of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be taken in so.
    Adopt(Box<Volume>),
    /// The ledger has it so.
    Known,
    /// Not to be taken in.
    Refused,
}

/// A volume's verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) verdict: Verdict,
    pub(super) size_bytes: u64,
    pub(super) nodes: Vec<NodeId>,
    /// Why it is refused.
    pub(super) reasons: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// The verdicts on all volumes that the appliance or Kubernetes has, by id.
pub(super) fn judge(facts: &Facts<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = facts.objects.volumes.iter().map(|volume| facts.judge_volume(volume)).collect();
    let handles: BTreeSet<&str> =
        facts.objects.volumes.iter().filter_map(|v| v.csi()).map(|csi| csi.volume_handle.as_str()).collect();
    let lone = facts
        .disks
        .iter()
        .filter(|disk| !handles.contains(disk.volume.as_str()) && facts.state.volume(&disk.volume).is_none());
    rows.extend(lone.map(|disk| Row {
        size_bytes: disk.size_bytes,
        ..Row::refused(
            disk.volume.as_str(),
            "the appliance has it, and no PersistentVolume names it".to_owned(),
        )
    }));
    rows.sort_by(|one, other| one.id.cmp(&other.id));
    rows
}

impl Row {
    fn refused(id: &str, reason: String) -> Self {
        let (nodes, warnings) = (Vec::new(), Vec::new());
        Self {
            id: id.to_owned(),
            verdict: Verdict::Refused,
            size_bytes: 0,
            nodes,
            reasons: vec![reason],
            warnings,
        }
    }
}

/// A node that has the volume.
struct Holder {
    node: NodeId,
    generation: Generation,
    since: String,
}

impl Facts<'_> {
    fn judge_volume(&self, volume: &PersistentVolume) -> Row {
        let name = &volume.metadata.name;
        let Some(csi) = volume.csi() else { return Row::refused(name, "it is not a CSI volume".to_owned()) };
        let parsed = VolumeName::parse(name).map(|parsed| (VolumeId::for_name(&parsed), parsed));
        let (id, name) = match parsed {
            Ok((id, name)) if id.as_str() == csi.volume_handle => (id, name),
            Ok(_) | Err(_) => {
                let why = format!(
                    "PersistentVolume {name} does not have the name that its volumeHandle belongs to"
                );
                return Row::refused(&csi.volume_handle, why);
            }
        };
        let mut row = Row { reasons: Vec::new(), ..Row::refused(id.as_str(), String::new()) };
        let Some(disk) = self.disks.iter().find(|disk| disk.volume == id) else {
            row.reasons.push("a PersistentVolume names it, and the appliance does not have it".to_owned());
            return row;
        };
        row.size_bytes = disk.size_bytes;
        let context = match VolumeContext::parse("volumeAttributes", &csi.volume_attributes, &id) {
            Ok(context) => context,
            Err(error) => {
                row.reasons.push(error.to_string());
                return row;
            }
        };
        let parameters = context.parameters.clone().or_defaults(self.defaults);
        let fs_type = FsType::parse(&csi.fs_type);
        let mode = mode_of(volume, csi, fs_type);
        self.compare(&id, volume, &context, disk, &mut row);
        let holders = self.holders(&id, volume, &mut row);
        let (mode, size) = match (mode, ByteSize::exactly(disk.size_bytes)) {
            (Ok(mode), Some(size)) => (mode, size),
            (mode, size) => {
                row.reasons.extend(mode.err());
                if size.is_none() {
                    row.reasons
                        .push(format!("its size, {} bytes, is none that a volume can have", disk.size_bytes));
                }
                return row;
            }
        };
        limit(&holders, mode, &mut row);
        row.nodes = holders.iter().map(|holder| holder.node.clone()).collect();
        let parameters =
            state_machine::VolumeParameters { fs_type: fs_type.unwrap_or_default(), ..parameters };
        let adopted = self.volume(id, name, size, parameters, mode, holders);
        self.conclude(adopted, row)
    }

    fn conclude(&self, adopted: Volume, mut row: Row) -> Row {
        match self.state.volume(&adopted.id) {
            Some(known) if known.size == adopted.size && known.parameters == adopted.parameters => {
                row.nodes = known.attachments.keys().cloned().collect();
                (row.verdict, row.reasons) = (Verdict::Known, Vec::new());
            }
            Some(_) => row.reasons.push("the ledger has it with other facts; nothing is changed".to_owned()),
            None if row.reasons.is_empty() => row.verdict = Verdict::Adopt(Box::new(adopted)),
            None => {}
        }
        row
    }

    /// Where appliance and PersistentVolume do not say the same.
    fn compare(
        &self,
        id: &VolumeId,
        volume: &PersistentVolume,
        context: &VolumeContext,
        disk: &Disk,
        row: &mut Row,
    ) {
        let parameters = context.parameters.clone().or_defaults(self.defaults);
        let mut differs = |what: &str, appliance: &str, kubernetes: &str| {
            if appliance != kubernetes {
                row.reasons.push(format!(
                    "its {what}: the appliance has {appliance}, the PersistentVolume {kubernetes}"
                ));
            }
        };
        differs("file", &disk.file_path, &format!("{}/{id}.img", parameters.volume_path));
        let nqn = Nqn::of_volume(self.nqn_prefix, id).map(|nqn| nqn.to_string()).unwrap_or_default();
        differs("NQN", disk.nqn.as_ref().map_or("none", Nqn::as_str), &nqn);
        if let Some(told) = &context.nqn {
            differs("NQN", &nqn, told.as_str());
        }
        let port = disk.nvme_port.map_or("none".to_owned(), |port| port.to_string());
        differs("NVMe port", &port, &parameters.nvme_port.to_string());
        let capacity = volume.spec.capacity.get("storage").map(String::as_str).unwrap_or_default();
        let bytes = quantity_bytes(capacity).map_or(format!("{capacity:?}"), |bytes| bytes.to_string());
        differs("size in bytes", &disk.size_bytes.to_string(), &bytes);
        if !disk.exported {
            row.reasons.push("the appliance does not export it".to_owned());
        }
        let same = self
            .objects
            .volumes
            .iter()
            .filter(|other| other.csi().is_some_and(|csi| csi.volume_handle == id.as_str()));
        if same.count() > 1 {
            row.reasons.push("several PersistentVolumes name it".to_owned());
        }
        if context.parameters.ctrl_loss_tmo_seconds == Some(0) {
            row.warnings.push(
                "its ctrlLossTmo of 0 was the kernel's default for the Go driver; here a lost connection is given up at \
                 once"
                    .to_owned(),
            );
        }
        if disk.mounted_by_appliance {
            row.warnings.push(format!(
                "the appliance may mount the file system in it while a node uses it: run \
                 /disk set [find slot=\"{id}\"] mount-filesystem=no"
            ));
        }
    }

    /// Who has the volume, the one that had it first at the front.
    fn holders(&self, id: &VolumeId, volume: &PersistentVolume, row: &mut Row) -> Vec<Holder> {
        let attached = self.objects.attachments.iter().filter(|a| a.is_of(volume) && a.status.attached);
        let mut holders = Vec::new();
        for attachment in attached {
            match holder(attachment) {
                Ok(holder) => holders.push(holder),
                Err(why) => row.reasons.push(why),
            }
        }
        holders.sort_by(|one, other| (&one.since, &one.node).cmp(&(&other.since, &other.node)));
        let none = BTreeMap::new();
        let told = self.sights.get(id).unwrap_or(&none);
        for (node, told) in told {
            let is_holder = holders.iter().any(|holder| holder.node == *node);
            match told {
                Told::Connected(_) if !is_holder => {
                    row.warnings.push(format!("node {node} is connected to it without a VolumeAttachment"));
                    let (node, generation) = (node.clone(), Generation::default());
                    holders.push(Holder { node, generation, since: String::new() });
                }
                Told::Unknown { why } if self.rebuild => row.reasons.push(why.clone()),
                Told::Unknown { why } => row.warnings.push(why.clone()),
                Told::Connected(_) | Told::Absent => {}
            }
        }
        for holder in &holders {
            if !self.state.nodes().contains_key(&holder.node) {
                row.reasons.push(format!(
                    "node {} has it and has not registered: start its node plugin, or delete its VolumeAttachment if \
                     the node is gone for good",
                    holder.node
                ));
            }
        }
        holders
    }

    fn volume(
        &self,
        id: VolumeId,
        name: VolumeName,
        size: ByteSize,
        parameters: state_machine::VolumeParameters,
        mode: AttachmentMode,
        holders: Vec<Holder>,
    ) -> Volume {
        let now = self.state.clock();
        let migration = match &holders[..] {
            [source, target] => Some(Migration {
                id: MigrationId(0),
                source: source.node.clone(),
                target: target.node.clone(),
                started_at: now,
                deadline: now,
                phase: MigrationPhase::Active,
            }),
            _ => None,
        };
        let attachment = |holder: Holder| {
            let attachment = Attachment {
                mode,
                generation: holder.generation,
                phase: AttachmentPhase::Granted,
                connection: Connection::Permitted,
                heard: None,
                problem: None,
                since: now,
                vm: None,
            };
            (holder.node, attachment)
        };
        Volume {
            id,
            name,
            size,
            parameters,
            phase: VolumePhase::Ready,
            generation: Generation::default(),
            problem: None,
            attachments: holders.into_iter().map(attachment).collect(),
            migration,
            cut_off: BTreeSet::new(),
            created_at: now,
            history: Default::default(),
        }
    }
}

fn holder(attachment: &VolumeAttachment) -> Result<Holder, String> {
    let name = &attachment.metadata.name;
    let node = NodeId::parse(&attachment.spec.node_name)
        .map_err(|error| format!("VolumeAttachment {name}: nodeName {error}"))?;
    let generation = match attachment.status.attachment_metadata.get("generation") {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            format!("VolumeAttachment {name}: attachmentMetadata[generation] is {text:?}, which is no number")
        })?,
    };
    Ok(Holder {
        node,
        generation: Generation(generation),
        since: attachment.metadata.creation_timestamp.clone(),
    })
}

/// More nodes than the volume may have are named, and it is left alone.
fn limit(holders: &[Holder], mode: AttachmentMode, row: &mut Row) {
    let most = if mode.access_mode.is_single_node() { 1 } else { 2 };
    if holders.len() > most {
        let nodes: Vec<&str> = holders.iter().map(|holder| holder.node.as_str()).collect();
        row.reasons.push(format!(
            "{} nodes have it, {}, and {most} may, as {mode}: let it go on all but {most} first",
            holders.len(),
            nodes.join(" and ")
        ));
    } else if holders.len() == 2 {
        row.warnings.push(format!(
            "two nodes have it: a migration from {} to {} is taken to begin now",
            holders.first().map_or("", |holder| holder.node.as_str()),
            holders.last().map_or("", |holder| holder.node.as_str())
        ));
    }
}

/// How Kubernetes' attacher asks for the volume.
fn mode_of(
    volume: &PersistentVolume,
    csi: &CsiSource,
    fs_type: Option<FsType>,
) -> Result<AttachmentMode, String> {
    let modes = &volume.spec.access_modes;
    let has = |mode: &str| modes.iter().any(|given| given == mode);
    let is_block = volume.spec.volume_mode == "Block";
    let access_mode = if has("ReadOnlyMany") {
        return Err("ReadOnlyMany is not supported".to_owned());
    } else if has("ReadWriteMany") && is_block {
        AccessMode::MultiNodeMultiWriter
    } else if has("ReadWriteMany") {
        return Err("ReadWriteMany with a file system: two nodes that mount it destroy it".to_owned());
    } else if has("ReadWriteOncePod") {
        AccessMode::SingleNodeSingleWriter
    } else if has("ReadWriteOnce") {
        AccessMode::SingleNodeMultiWriter
    } else {
        return Err(format!("its accessModes are {modes:?}, none of which is known"));
    };
    let access_type = match (is_block, fs_type) {
        (true, _) => AccessType::Block,
        (false, Some(fs_type)) => AccessType::Mount { fs_type },
        (false, None) => return Err(format!("its fsType is {:?}; supported are ext4 and xfs", csi.fs_type)),
    };
    Ok(AttachmentMode { access_mode, access_type, read_only: csi.read_only })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

//! Publish and unpublish: DESIGN.md, "Publish" and "Unpublish"; the ledger decides.

use std::time::{Duration, Instant};

use csi::context::PublishContext;
use csi::{parse, status};
use proto::csi::v1;
use state_machine::{
    AccessType, AttachmentMode, AttachmentPhase, Command, Connection, Generation, NodeId, Problem, Refusal,
    Response, State, Volume, VolumeId,
};
use tonic::Status;

use super::ControllerService;
use crate::sessions::{Told, Usage};

/// How long an unpublish waits for its proof before the sidecar is asked to come again, in milliseconds.
const DETACH_WAIT_MS: u64 = 5_000;
/// How long the leader may take to say who uses a volume before it is revoked, a new look of the node included.
const SIGHTS_WAIT_MS: u64 = 4_000;
/// How long it may take to say why a volume is not off yet; the answer is given without that otherwise.
const REASON_WAIT_MS: u64 = 500;

/// Why a publish fails.
struct Denied {
    status: Status,
    /// Others have the volume.
    conflict: bool,
}

impl From<Status> for Denied {
    fn from(status: Status) -> Self {
        Self { status, conflict: false }
    }
}

impl From<&Refusal> for Denied {
    fn from(refusal: &Refusal) -> Self {
        let conflict = matches!(
            refusal,
            Refusal::AttachedElsewhere { .. }
                | Refusal::TwoNodesAlready { .. }
                | Refusal::SeveralVms { .. }
                | Refusal::NotMigrating { .. }
        );
        Self { status: status::of_refusal(refusal), conflict }
    }
}

/// How a grant that somebody waits for stands.
enum Grant {
    Stands(Box<Volume>),
    Trouble(Problem),
    Gone,
}

impl ControllerService {
    pub(super) async fn do_publish(
        &self,
        request: v1::ControllerPublishVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::ControllerPublishVolumeResponse, Status> {
        let wanted = parse::ControllerPublish::parse(&request)?;
        let begun = Instant::now();
        let result = self.attach(&wanted, deadline).await;
        let is_conflict = result.as_ref().is_err_and(|denied| denied.conflict);
        self.metrics.attach(begun.elapsed(), result.is_ok(), is_conflict);
        if let Err(Denied { status, .. }) = &result {
            let (volume, node, reason) = (&wanted.volume, &wanted.node, status.message());
            let term = self.replica.status().term;
            tracing::info!(%volume, %node, term, code = ?status.code(), reason, "not attached");
            if is_conflict {
                self.post_conflict(volume, node, reason);
            }
        }
        result.map_err(|denied| denied.status)
    }

    async fn attach(
        &self,
        wanted: &parse::ControllerPublish,
        deadline: Instant,
    ) -> Result<v1::ControllerPublishVolumeResponse, Denied> {
        let (id, node) = (&wanted.volume, &wanted.node);
        let class_fs_type = self.existing(id, deadline).await?.parameters.fs_type;
        let mode = wanted.mode(class_fs_type);
        let generation = self.propose_publish(id, node, mode, deadline).await?;
        let look = |state: &State| grant_of(state, id, node, generation);
        let volume = match self.wait_for(deadline, look).await? {
            Some(Grant::Stands(volume)) => volume,
            Some(Grant::Trouble(problem)) => return Err(status::of_problem(&problem).into()),
            Some(Grant::Gone) => {
                return Err(Status::aborted(format!(
                    "volume {id} was unpublished from {node} meanwhile; try again"
                ))
                .into());
            }
            None => {
                return Err(Status::aborted(format!(
                    "the export of volume {id} is not confirmed yet; try again"
                ))
                .into());
            }
        };
        let term = self.replica.status().term;
        tracing::info!(volume = %id, %node, generation = generation.0, term, %mode, "attached");
        let fs_type = match mode.access_type {
            AccessType::Mount { fs_type } => fs_type,
            AccessType::Block => class_fs_type,
        };
        let context = PublishContext {
            nvme_address: volume.parameters.nvme_address.clone(),
            nvme_port: volume.parameters.nvme_port,
            nvme_nqn: self.nqn(id)?,
            fs_type,
            generation,
        };
        Ok(v1::ControllerPublishVolumeResponse { publish_context: context.to_map() })
    }

    /// Proposes the publish, as often as another volume of the same VM has to be granted first. The sidecar would come
    /// again too, but only after a pause that grows.
    async fn propose_publish(
        &self,
        id: &VolumeId,
        node: &NodeId,
        mode: AttachmentMode,
        deadline: Instant,
    ) -> Result<Generation, Denied> {
        if planted::is(planted::Bug::LimitBeforeForwarding) {
            self.judge_here(id, node)?;
        }
        self.await_pod(id, node, deadline).await;
        loop {
            let (volume, node, observed) = (id.clone(), node.clone(), self.observed(id));
            let response =
                self.propose_raw(Command::Publish { volume, node, mode, observed }, deadline).await?;
            let refusal = match response {
                Response::Attached { generation } => return Ok(generation),
                Response::Refused(refusal) => refusal,
                Response::Done
                | Response::Pending { .. }
                | Response::Exists { .. }
                | Response::Revoking { .. } => {
                    return Err(Status::internal(format!("publish answered {response:?}")).into());
                }
            };
            let Refusal::VmBusy { vm, other, .. } = &refusal else {
                return Err(Denied::from(&refusal));
            };
            tracing::info!(volume = %id, vm, %other, "waits for another volume of its VM");
            let granted = |state: &State| (!is_being_granted(state, other, vm)).then_some(());
            if self.wait_for(deadline, granted).await?.is_none() {
                return Err(Denied::from(&refusal));
            }
        }
    }

    /// Judges by what this replica has applied, which may be old. Only with the bug of that name planted.
    fn judge_here(&self, id: &VolumeId, node: &NodeId) -> Result<(), Status> {
        let others = |volume: &Volume| volume.attachments.keys().filter(|other| *other != node).count();
        let is_single = |volume: &Volume| {
            volume.attachments.values().any(|attachment| attachment.mode.access_mode.is_single_node())
        };
        let full = |volume: &Volume| others(volume) > usize::from(!is_single(volume));
        let is_full = self.replica.read_local(|state| state.volume(id).is_some_and(full));
        if is_full { Err(Status::failed_precondition("it is on as many nodes as it may be")) } else { Ok(()) }
    }

    pub(super) async fn do_unpublish(
        &self,
        request: v1::ControllerUnpublishVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::ControllerUnpublishVolumeResponse, Status> {
        let wanted = parse::ControllerUnpublish::parse(&request)?;
        let begun = Instant::now();
        let result = self.detach(&wanted, deadline).await;
        self.metrics.detach(begun.elapsed(), result.is_ok());
        let (volume, node) = (&wanted.volume, wanted.node.as_ref().map_or("all nodes", NodeId::as_str));
        let term = self.replica.status().term;
        match &result {
            Ok(()) if self.require_detach_proof => tracing::info!(%volume, node, term, "detached"),
            Ok(()) => tracing::warn!(%volume, node, term, "detached, unproven: requireDetachProof is off"),
            Err(status) => {
                tracing::info!(%volume, node, term, code = ?status.code(), reason = status.message(), "not detached");
            }
        }
        result.map(|()| v1::ControllerUnpublishVolumeResponse {})
    }

    async fn detach(&self, wanted: &parse::ControllerUnpublish, deadline: Instant) -> Result<(), Status> {
        let id = &wanted.volume;
        if self.require_detach_proof {
            self.refuse_while_held(wanted, deadline).await?;
        }
        let command = Command::Unpublish {
            volume: id.clone(),
            node: wanted.node.clone(),
            require_proof: self.require_detach_proof,
        };
        let Response::Revoking { nodes } = self.propose(command, deadline).await? else { return Ok(()) };
        let wait_until = deadline.min(Instant::now() + Duration::from_millis(DETACH_WAIT_MS));
        let off = |state: &State| still_revoking(state, id, &nodes).is_empty().then_some(());
        match self.wait_for(wait_until, off).await? {
            Some(()) => Ok(()),
            None => Err(self.why_not_off(id, &nodes, deadline).await),
        }
    }

    /// An error if a node that may be connected is known to use the volume: then nothing is revoked. Of a node of which
    /// nothing is known, only the revocation can bring about a proof.
    async fn refuse_while_held(
        &self,
        wanted: &parse::ControllerUnpublish,
        deadline: Instant,
    ) -> Result<(), Status> {
        let id = &wanted.volume;
        let nodes = self.read(deadline, |state| may_be_connected(state, id, wanted.node.as_ref())).await?;
        if nodes.is_empty() {
            return Ok(());
        }
        let ask_until = deadline.min(Instant::now() + Duration::from_millis(SIGHTS_WAIT_MS));
        let held = self.holders(id, &nodes, true, ask_until).await;
        if held.is_empty() { Ok(()) } else { Err(status::of_holders(id, &held)) }
    }

    /// Why a revoked attachment is not gone yet.
    async fn why_not_off(&self, id: &VolumeId, nodes: &[NodeId], deadline: Instant) -> Status {
        let nodes = self.replica.read_local(|state| still_revoking(state, id, nodes));
        let ask_until = deadline.min(Instant::now() + Duration::from_millis(REASON_WAIT_MS));
        let held = self.holders(id, &nodes, false, ask_until).await;
        if held.is_empty() { status::of_revoking(id, &nodes) } else { status::of_holders(id, &held) }
    }

    /// Who is known to use the volume on these nodes.
    async fn holders(
        &self,
        id: &VolumeId,
        nodes: &[NodeId],
        look_again: bool,
        ask_until: Instant,
    ) -> Vec<(NodeId, Vec<String>)> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let sights = self.leader.sights(id, nodes, look_again, ask_until).await.unwrap_or_else(|reason| {
            tracing::info!(volume = %id, reason, "what the nodes say is not known");
            Vec::new()
        });
        let held = sights.into_iter().filter_map(|(node, told)| match told {
            Told::Connected(Usage::InUse { by }) => Some((node, by)),
            Told::Connected(Usage::Idle | Usage::Busy | Usage::Unseen { .. }) | Told::Absent => None,
            Told::Unknown { why } => {
                tracing::info!(volume = %id, %node, why, "not known");
                None
            }
        });
        held.collect()
    }
}

/// Those nodes, or this one, that the ledger has permitted to connect.
fn may_be_connected(state: &State, id: &VolumeId, node: Option<&NodeId>) -> Vec<NodeId> {
    let Some(volume) = state.volume(id) else { return Vec::new() };
    let asked = volume.attachments.iter().filter(|(name, _)| node.is_none_or(|node| node == *name));
    let connected = asked.filter(|(_, attachment)| attachment.connection == Connection::Permitted);
    connected.map(|(node, _)| node.clone()).collect()
}

/// Whether the volume still is on its way to a node for the VM.
fn is_being_granted(state: &State, id: &VolumeId, vm: &str) -> bool {
    let attachments = state.volume(id).into_iter().flat_map(|volume| volume.attachments.values());
    let mut under_way = attachments
        .filter(|attachment| attachment.phase == AttachmentPhase::Granting && attachment.problem.is_none());
    under_way.any(|attachment| attachment.vm.as_deref() == Some(vm))
}

fn grant_of(state: &State, id: &VolumeId, node: &NodeId, generation: Generation) -> Option<Grant> {
    let volume = state.volume(id);
    let attachment = volume.and_then(|volume| volume.attachments.get(node));
    let (Some(volume), Some(attachment)) = (volume, attachment) else { return Some(Grant::Gone) };
    match (attachment.phase, &attachment.problem) {
        _ if attachment.generation != generation => Some(Grant::Gone),
        (AttachmentPhase::Granted, _) => Some(Grant::Stands(Box::new(volume.clone()))),
        (AttachmentPhase::Revoking, _) => Some(Grant::Gone),
        (AttachmentPhase::Granting, Some(problem)) => Some(Grant::Trouble(problem.clone())),
        (AttachmentPhase::Granting, None) => None,
    }
}

/// Those of `nodes` whose attachment is being revoked; one that was attached anew since is not.
fn still_revoking(state: &State, id: &VolumeId, nodes: &[NodeId]) -> Vec<NodeId> {
    let Some(volume) = state.volume(id) else { return Vec::new() };
    let revoking = |node: &&NodeId| {
        volume.attachments.get(*node).is_some_and(|attachment| attachment.phase == AttachmentPhase::Revoking)
    };
    nodes.iter().filter(revoking).cloned().collect()
}

//! CSI's controller service, as `src/controller/src/service/` answers it: propose, and wait for the state to show it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller::cores::sessions::Sight;
use csi::context::PublishContext;
use csi::status;
use openraft::async_runtime::WatchReceiver;
use planted::Bug;
use state_machine::{
    AttachmentMode, AttachmentPhase, ByteSize, Command, Connection, Generation, NodeId, Nqn, Observed,
    OperationStatus, Response, State, Volume, VolumeId, VolumeName, VolumeParameters, VolumePhase,
};
use tonic::{Code, Status};

use super::sights::is_held;
use super::{Decided, Replica};
use crate::sim::runtime::{SimInstant, sleep_ms, timeout};
use crate::sim::world::nqn_prefix;

/// How long an unpublish waits for its proof, as in production.
const DETACH_WAIT: Duration = Duration::from_millis(5_000);
/// How long the leader may take to say who uses a volume before it is revoked.
const SIGHTS_WAIT: Duration = Duration::from_millis(4_000);
/// How long a deletion waits for nodes that may have the volume connected, and how often they are looked at.
const NODES_WAIT: Duration = Duration::from_millis(10_000);
const NODES_POLL_MS: u64 = 100;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The gRPC code's name.
    pub(crate) code: String,
    /// In a sentence.
    pub(crate) why: String,
    /// It did not happen, and will not.
    pub(crate) is_final: bool,
}

/// What a call came to.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// A publish that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) generation: Generation,
    pub(crate) context: BTreeMap<String, String>,
}

/// Nobody decided: it may have happened.
fn unknown(why: impl Into<String>) -> Failure {
    Failure { code: "Unavailable".to_owned(), why: why.into(), is_final: false }
}

/// As the caller would be told, after something may have happened.
fn open(status: &Status) -> Failure {
    Failure { code: format!("{:?}", status.code()), why: status.message().to_owned(), is_final: false }
}

/// As the caller would be told, when nothing happened.
fn refused(status: &Status) -> Failure {
    let is_final = !matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded);
    Failure { is_final, ..open(status) }
}

/// The response, unless it is a refusal; one that comes to a repetition says nothing of the first attempt.
fn accepted(decided: Decided<Response>) -> Outcome<Response> {
    match decided.answer {
        Response::Refused(refusal) if decided.repeated => Err(open(&status::of_refusal(&refusal))),
        Response::Refused(refusal) => Err(refused(&status::of_refusal(&refusal))),
        response @ (Response::Done
        | Response::Pending { .. }
        | Response::Exists { .. }
        | Response::Attached { .. }
        | Response::Revoking { .. }) => Ok(response),
    }
}

impl Replica {
    async fn decide(self: &Arc<Self>, command: Command, until: SimInstant) -> Outcome<Response> {
        accepted(self.propose(command, until).await.map_err(unknown)?)
    }

    async fn wait_for<T: Send>(
        self: &Arc<Self>,
        until: SimInstant,
        look: impl Fn(&State) -> Option<T> + Send + Sync,
    ) -> Outcome<Option<T>> {
        let mut applied = self.machine.watch_applied();
        let mut found = self.read(until, &look).await.map_err(unknown)?;
        while found.is_none() {
            match timeout(until.remaining(), applied.changed()).await {
                Some(Ok(())) => found = self.read_local(&look),
                Some(Err(_)) => return Err(unknown("the replica is shutting down")),
                None => return Ok(None),
            }
        }
        Ok(found)
    }

    async fn wait_for_operation(
        self: &Arc<Self>,
        volume: &VolumeId,
        generation: Generation,
        until: SimInstant,
    ) -> Outcome<OperationStatus> {
        let ended = |state: &State| {
            Some(state.operation(volume, generation)).filter(|status| *status != OperationStatus::Running)
        };
        Ok(self.wait_for(until, ended).await?.unwrap_or(OperationStatus::Running))
    }

    /// CreateVolume.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: &VolumeId,
        size: ByteSize,
        parameters: &VolumeParameters,
        until: SimInstant,
    ) -> Outcome<()> {
        let name = VolumeName::parse(id.as_str()).map_err(|error| unknown(error.to_string()))?;
        let (id, parameters) = (id.clone(), parameters.clone());
        let command =
            Command::CreateVolume { id: id.clone(), name, required: size, limit_bytes: None, parameters };
        if let Response::Pending { generation } = self.decide(command, until).await? {
            let ended = self.wait_for_operation(&id, generation, until).await?;
            ended_well(&id, &ended)?;
        }
        self.existing(&id, until).await.map(drop)
    }

    /// DeleteVolume.
    pub(crate) async fn delete(self: &Arc<Self>, id: &VolumeId, until: SimInstant) -> Outcome<()> {
        self.refuse_while_connected(id, until).await?;
        let command = Command::DeleteVolume { volume: id.clone() };
        if let Response::Pending { generation } = self.decide(command, until).await? {
            let ended = self.wait_for_operation(id, generation, until).await?;
            if ended != OperationStatus::VolumeGone {
                status::of_operation(id, &ended).map_err(|status| open(&status))?;
            }
        }
        Ok(())
    }

    async fn refuse_while_connected(self: &Arc<Self>, id: &VolumeId, until: SimInstant) -> Outcome<()> {
        let is_to_go = |volume: &Volume| volume.phase != VolumePhase::Deleting;
        let read = self.read(until, |state| state.volume(id).is_some_and(is_to_go)).await;
        if !read.map_err(unknown)? {
            return Ok(());
        }
        let wait_until = until.min(SimInstant::now() + NODES_WAIT);
        loop {
            let sights = self.sights(id, &[], wait_until).await.map_err(unknown)?;
            let connected: Vec<NodeId> = sights
                .iter()
                .filter(|(_, sight)| matches!(sight, Sight::Connected { .. }))
                .map(|(node, _)| node.clone())
                .collect();
            if !connected.is_empty() {
                return Err(refused(&status::of_connected(id, &connected)));
            }
            let unseen = sights.iter().find(|(_, sight)| matches!(sight, Sight::Unknown { .. }));
            let Some((node, _)) = unseen else { return Ok(()) };
            if wait_until.remaining().is_zero() {
                return Err(unknown(format!("{node} may have it connected")));
            }
            sleep_ms(NODES_POLL_MS).await;
        }
    }

    /// ControllerExpandVolume.
    pub(crate) async fn expand(
        self: &Arc<Self>,
        id: &VolumeId,
        size: ByteSize,
        until: SimInstant,
    ) -> Outcome<()> {
        let command = Command::ExpandVolume { volume: id.clone(), required: size, limit_bytes: None };
        if let Response::Pending { generation } = self.decide(command, until).await? {
            let ended = self.wait_for_operation(id, generation, until).await?;
            ended_well(id, &ended)?;
        }
        let volume = self.existing(id, until).await?;
        if volume.size < size { Err(unknown("it was not expanded")) } else { Ok(()) }
    }

    /// ControllerPublishVolume.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        id: &VolumeId,
        node: &NodeId,
        mode: AttachmentMode,
        until: SimInstant,
    ) -> Outcome<Published> {
        let found = self.read(until, |state| state.volume(id).is_some()).await.map_err(unknown)?;
        if !found {
            let refusal = state_machine::Refusal::VolumeNotFound { volume: id.clone() };
            return Err(refused(&status::of_refusal(&refusal)));
        }
        if planted::is(Bug::LimitBeforeForwarding) && self.read_local(|state| is_full(state, id, node)) {
            return Err(refused(&Status::failed_precondition("it is on as many nodes as it may be")));
        }
        let command =
            Command::Publish { volume: id.clone(), node: node.clone(), mode, observed: Observed::default() };
        let Response::Attached { generation } = self.decide(command, until).await? else {
            return Err(unknown("another response than a publish has"));
        };
        let granted = self.wait_for(until, |state| grant_of(state, id, node, generation)).await?;
        let volume = granted.ok_or_else(|| unknown("the export is not confirmed yet"))??;
        let context = PublishContext {
            nvme_address: volume.parameters.nvme_address.clone(),
            nvme_port: volume.parameters.nvme_port,
            nvme_nqn: Nqn::of_volume(&nqn_prefix(), id).map_err(|error| unknown(error.to_string()))?,
            fs_type: volume.parameters.fs_type,
            generation,
        };
        Ok(Published { generation, context: context.to_map().into_iter().collect() })
    }

    /// ControllerUnpublishVolume. Each failure leaves open what happened.
    pub(crate) async fn unpublish(
        self: &Arc<Self>,
        id: &VolumeId,
        node: &NodeId,
        until: SimInstant,
    ) -> Outcome<()> {
        let is_permitted = |state: &State| {
            let attachment = state.volume(id).and_then(|volume| volume.attachments.get(node));
            attachment.is_some_and(|attachment| attachment.connection == Connection::Permitted)
        };
        let nodes = [node.clone()];
        if self.read(until, is_permitted).await.map_err(unknown)? {
            let ask_until = until.min(SimInstant::now() + SIGHTS_WAIT);
            let sights = self.sights(id, &nodes, ask_until).await.unwrap_or_default();
            if sights.iter().any(|(_, sight)| is_held(sight)) {
                return Err(Failure {
                    code: "FailedPrecondition".to_owned(),
                    why: format!("{node} uses it"),
                    is_final: false,
                });
            }
        }
        let command =
            Command::Unpublish { volume: id.clone(), node: Some(node.clone()), require_proof: true };
        let decided = self.propose(command, until).await.map_err(unknown)?;
        let Response::Revoking { .. } = decided.answer else { return Ok(()) };
        let wait_until = until.min(SimInstant::now() + DETACH_WAIT);
        let off = |state: &State| {
            let attachment = state.volume(id).and_then(|volume| volume.attachments.get(node));
            let revoking = attachment.is_some_and(|held| held.phase == AttachmentPhase::Revoking);
            (!revoking).then_some(())
        };
        match self.wait_for(wait_until, off).await? {
            Some(()) => Ok(()),
            None => Err(open(&status::of_revoking(id, &nodes))),
        }
    }

    /// The volume as it is now for everybody.
    pub(crate) async fn look(self: &Arc<Self>, id: &VolumeId, until: SimInstant) -> Outcome<Option<Volume>> {
        self.read(until, |state| state.volume(id).cloned()).await.map_err(unknown)
    }

    async fn existing(self: &Arc<Self>, id: &VolumeId, until: SimInstant) -> Outcome<Volume> {
        self.look(id, until).await?.ok_or_else(|| unknown("it is not there any more"))
    }
}

/// Whether the volume is on as many other nodes as it may be, for the bug that judges that by an old state.
fn is_full(state: &State, id: &VolumeId, node: &NodeId) -> bool {
    let Some(volume) = state.volume(id) else { return false };
    let is_single = volume.attachments.values().any(|held| held.mode.access_mode.is_single_node());
    volume.attachments.keys().filter(|other| *other != node).count() > usize::from(!is_single)
}

fn ended_well(id: &VolumeId, ended: &OperationStatus) -> Outcome<()> {
    let is_abandoned = matches!(ended, OperationStatus::Abandoned(_));
    status::of_operation(id, ended)
        .map_err(|status| if is_abandoned { refused(&status) } else { open(&status) })
}

fn grant_of(
    state: &State,
    id: &VolumeId,
    node: &NodeId,
    generation: Generation,
) -> Option<Outcome<Box<Volume>>> {
    let gone = || Some(Err(unknown("it was unpublished meanwhile")));
    let Some(volume) = state.volume(id) else { return gone() };
    let Some(attachment) = volume.attachments.get(node) else { return gone() };
    match (attachment.phase, &attachment.problem) {
        _ if attachment.generation != generation => gone(),
        (AttachmentPhase::Granted, _) => Some(Ok(Box::new(volume.clone()))),
        (AttachmentPhase::Revoking, _) => gone(),
        (AttachmentPhase::Granting, Some(problem)) => Some(Err(open(&status::of_problem(problem)))),
        (AttachmentPhase::Granting, None) => None,
    }
}

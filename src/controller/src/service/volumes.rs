//! Create, delete, expand: an intent goes into the ledger, the executor carries it out, we wait for it.

use std::time::{Duration, Instant};

use csi::{parse, status};
use proto::csi::v1;
use state_machine::{Command, OperationStatus, Response, Volume, VolumeId, VolumePhase};
use tonic::Status;

use super::ControllerService;
use crate::sessions::Told;

/// How long a deletion waits for nodes that may have the volume connected to say so, in ms.
const NODES_WAIT_MS: u64 = 10_000;
/// How often they are looked at meanwhile, in ms.
const NODES_POLL_MS: u64 = 100;

impl ControllerService {
    pub(super) async fn do_create_volume(
        &self,
        request: v1::CreateVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::CreateVolumeResponse, Status> {
        let wanted = parse::CreateVolume::parse(&request, &self.defaults)?;
        self.topology.check(request.accessibility_requirements.as_ref())?;
        let id = wanted.volume.clone();
        let command = Command::CreateVolume {
            id: wanted.volume,
            name: wanted.name,
            required: wanted.size.required,
            limit_bytes: wanted.size.limit_bytes,
            parameters: wanted.parameters,
        };
        if let Response::Pending { generation } = self.propose(command, deadline).await? {
            status::of_operation(&id, &self.wait_for_operation(&id, generation, deadline).await?)?;
        }
        let volume = self.existing(&id, deadline).await?;
        let term = self.replica.status().term;
        tracing::info!(volume = %id, generation = volume.generation.0, bytes = volume.size.bytes(), term, "volume created");
        Ok(v1::CreateVolumeResponse { volume: Some(self.volume_message(&volume)?) })
    }

    pub(super) async fn do_delete_volume(
        &self,
        request: v1::DeleteVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::DeleteVolumeResponse, Status> {
        let parse::DeleteVolume { volume: id } = parse::DeleteVolume::parse(&request)?;
        self.refuse_while_connected(&id, deadline).await?;
        let command = Command::DeleteVolume { volume: id.clone() };
        if let Response::Pending { generation } = self.propose(command, deadline).await? {
            let ended = self.wait_for_operation(&id, generation, deadline).await?;
            if ended != OperationStatus::VolumeGone {
                status::of_operation(&id, &ended)?;
            }
            let term = self.replica.status().term;
            tracing::info!(volume = %id, generation = generation.0, term, "volume deleted");
        }
        Ok(v1::DeleteVolumeResponse {})
    }

    /// An error if a node reports a connection to the volume, whatever the ledger has: it may have believed somebody.
    async fn refuse_while_connected(&self, id: &VolumeId, deadline: Instant) -> Result<(), Status> {
        let is_to_go = |volume: &Volume| volume.phase != VolumePhase::Deleting;
        if !self.read(deadline, |state| state.volume(id).is_some_and(is_to_go)).await? {
            return Ok(());
        }
        let wait_until = deadline.min(Instant::now() + Duration::from_millis(NODES_WAIT_MS));
        loop {
            let sights = self.leader.sights(id, &[], true, wait_until).await;
            let mut connected = Vec::new();
            let mut unknown = None;
            for (node, told) in sights.map_err(|reason| status::no_quorum(&reason))? {
                match told {
                    Told::Connected(_) => connected.push(node),
                    Told::Absent => {}
                    Told::Unknown { why } => unknown = Some((node, why)),
                }
            }
            if !connected.is_empty() {
                return Err(status::of_connected(id, &connected));
            }
            let Some((node, why)) = unknown else { return Ok(()) };
            if Instant::now() >= wait_until {
                let what = format!("volume {id} is not deleted: {node} may have it connected; {why}");
                return Err(Status::unavailable(what));
            }
            // After a change of leaders the nodes are on their way to the new one.
            tokio::time::sleep(Duration::from_millis(NODES_POLL_MS)).await;
        }
    }

    pub(super) async fn do_expand_volume(
        &self,
        request: v1::ControllerExpandVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::ControllerExpandVolumeResponse, Status> {
        let wanted = parse::ControllerExpand::parse(&request)?;
        let id = wanted.volume;
        let command = Command::ExpandVolume {
            volume: id.clone(),
            required: wanted.size.required,
            limit_bytes: wanted.size.limit_bytes,
        };
        if let Response::Pending { generation } = self.propose(command, deadline).await? {
            status::of_operation(&id, &self.wait_for_operation(&id, generation, deadline).await?)?;
        }
        let volume = self.existing(&id, deadline).await?;
        if volume.size < wanted.size.required {
            return Err(Status::aborted(format!("volume {id} was not expanded; try again")));
        }
        let term = self.replica.status().term;
        tracing::info!(volume = %id, generation = volume.generation.0, bytes = volume.size.bytes(), term, "volume expanded");
        Ok(v1::ControllerExpandVolumeResponse {
            capacity_bytes: i64::try_from(volume.size.bytes()).unwrap_or(i64::MAX),
            // The node has a device, and perhaps a file system on it, that do not grow by themselves.
            node_expansion_required: true,
        })
    }

    /// The volume as it is now; NOT_FOUND if it went in the meantime.
    pub(super) async fn existing(&self, id: &VolumeId, deadline: Instant) -> Result<Volume, Status> {
        let volume = self.read(deadline, |state| state.volume(id).cloned()).await?;
        volume
            .ok_or_else(|| status::of_refusal(&state_machine::Refusal::VolumeNotFound { volume: id.clone() }))
    }
}

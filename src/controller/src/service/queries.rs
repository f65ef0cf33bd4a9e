//! What only reads: validate, list, get, capacity. Reads of the ledger are linearizable.

use std::ops::Bound;
use std::time::Instant;

use backend::BackendError;
use csi::{parse, status};
use proto::csi::v1;
use proto::csi::v1::list_volumes_response::{Entry, VolumeStatus};
use proto::csi::v1::validate_volume_capabilities_response::Confirmed;
use state_machine::{Refusal, Volume, VolumePhase};
use tonic::Status;

use super::ControllerService;

/// The largest page of `ListVolumes`: what fits well into one message.
const MAX_LIST_ENTRIES: usize = 1_000;

impl ControllerService {
    pub(super) async fn do_validate(
        &self,
        request: v1::ValidateVolumeCapabilitiesRequest,
        deadline: Instant,
    ) -> Result<v1::ValidateVolumeCapabilitiesResponse, Status> {
        let wanted = parse::ValidateCapabilities::parse(&request)?;
        let volume = self.existing(&wanted.volume, deadline).await?;
        let unconfirmed =
            |message: String| v1::ValidateVolumeCapabilitiesResponse { confirmed: None, message };
        if let Err(reason) = &wanted.capabilities {
            return Ok(unconfirmed(reason.clone()));
        }
        let given = [&wanted.parameters, &wanted.context.parameters];
        if let Some(key) = given.into_iter().find_map(|given| given.first_difference(&volume.parameters)) {
            return Ok(unconfirmed(format!("volume {} has another {key}", volume.id)));
        }
        let confirmed = Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        Ok(v1::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    pub(super) async fn do_list_volumes(
        &self,
        request: v1::ListVolumesRequest,
        deadline: Instant,
    ) -> Result<v1::ListVolumesResponse, Status> {
        let wanted = parse::ListVolumes::parse(&request)?;
        let most = wanted.max_entries.unwrap_or(MAX_LIST_ENTRIES).min(MAX_LIST_ENTRIES);
        let from = wanted.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page: Vec<Volume> = self
            .read(deadline, |state| {
                let after = state.volumes().range((from, Bound::Unbounded));
                after
                    .map(|(_, volume)| volume)
                    .filter(|volume| exists(volume))
                    .take(most + 1)
                    .cloned()
                    .collect()
            })
            .await?;
        let has_more = page.len() > most;
        page.truncate(most);
        let next_token = match page.last() {
            Some(last) if has_more => parse::list_token(&last.id),
            Some(_) | None => String::new(),
        };
        let entries = page.iter().map(|volume| {
            let status = VolumeStatus { published_node_ids: nodes_of(volume), ..Default::default() };
            Ok(Entry { volume: Some(self.volume_message(volume)?), status: Some(status) })
        });
        Ok(v1::ListVolumesResponse { entries: entries.collect::<Result<_, Status>>()?, next_token })
    }

    pub(super) async fn do_get_volume(
        &self,
        request: v1::ControllerGetVolumeRequest,
        deadline: Instant,
    ) -> Result<v1::ControllerGetVolumeResponse, Status> {
        let wanted = parse::ControllerGet::parse(&request)?;
        let volume = self.existing(&wanted.volume, deadline).await?;
        if !exists(&volume) {
            return Err(status::of_refusal(&Refusal::VolumeNotFound { volume: volume.id }));
        }
        let status = v1::controller_get_volume_response::VolumeStatus {
            published_node_ids: nodes_of(&volume),
            ..Default::default()
        };
        let volume = Some(self.volume_message(&volume)?);
        Ok(v1::ControllerGetVolumeResponse { volume, status: Some(status) })
    }

    pub(super) async fn do_capacity(
        &self,
        request: v1::GetCapacityRequest,
        deadline: Instant,
    ) -> Result<v1::GetCapacityResponse, Status> {
        let wanted = parse::GetCapacity::parse(&request, &self.defaults)?;
        if request.accessible_topology.is_some_and(|place| !self.topology.is_reached_from(&place)) {
            // Nothing of what is free can be used there: all zeros.
            return Ok(v1::GetCapacityResponse::default());
        }
        let answer = self.backend.capacity(&wanted.volume_path);
        let answer = tokio::time::timeout_at(deadline.into(), answer).await;
        let capacity = answer
            .map_err(|_| Status::unavailable("the appliance did not answer in time; try again"))?
            .map_err(|error| of_backend(&error))?;
        Ok(v1::GetCapacityResponse {
            available_capacity: i64::try_from(capacity.free_bytes).unwrap_or(i64::MAX),
            ..Default::default()
        })
    }
}

/// Whether the volume is one that others may know of: its creation was answered, or may have been.
fn exists(volume: &Volume) -> bool {
    match volume.phase {
        VolumePhase::Ready | VolumePhase::Expanding { .. } | VolumePhase::Deleting => true,
        VolumePhase::Creating { .. } => false,
    }
}

/// Every node that has the volume: one that is being revoked still has it.
fn nodes_of(volume: &Volume) -> Vec<String> {
    volume.attachments.keys().map(ToString::to_string).collect()
}

fn of_backend(error: &BackendError) -> Status {
    status::of_problem(&crate::executor::problem_of(error))
}

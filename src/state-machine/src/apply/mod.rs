//! `apply`: one file a command family, their tests below them.

mod migration;
mod node;
mod off;
mod publish;
mod recover;
mod unpublish;
mod volume;

use crate::command::{Command, Entry};
use crate::response::{Refusal, Response};
use crate::state::State;
use crate::volume::LedgerTime;

impl State {
    /// Applies a committed entry. Total and deterministic: the same entries give the same state everywhere.
    pub fn apply(&mut self, entry: Entry) -> Response {
        self.advance_clock(entry.at);
        let needed = entry.command.since_version();
        if needed > self.cluster_version {
            return Response::Refused(Refusal::VersionTooLow { needed, current: self.cluster_version });
        }
        let waits =
            !matches!(entry.command, Command::Tick | Command::Restore { .. } | Command::RegisterNode { .. });
        if waits && self.is_restoring() {
            return Response::Refused(Refusal::Restoring);
        }
        self.dispatch(entry.command).unwrap_or_else(Response::Refused)
    }

    fn dispatch(&mut self, command: Command) -> Result<Response, Refusal> {
        match command {
            Command::Tick => Ok(Response::Done),
            Command::SetClusterVersion { version } => {
                self.cluster_version = self.cluster_version.max(version);
                Ok(Response::Done)
            }
            Command::CreateVolume { id, name, required, limit_bytes, parameters } => {
                self.create_volume(id, name, required, limit_bytes, parameters)
            }
            Command::SlotWasFree { volume, generation } => self.slot_was_free(&volume, generation),
            Command::VolumeCreated { volume, generation } => self.volume_created(&volume, generation),
            Command::ExpandVolume { volume, required, limit_bytes } => {
                self.expand_volume(&volume, required, limit_bytes)
            }
            Command::VolumeExpanded { volume, generation } => self.volume_expanded(&volume, generation),
            Command::DeleteVolume { volume } => self.delete_volume(&volume),
            Command::VolumeDeleted { volume, generation } => self.volume_deleted(&volume, generation),
            Command::OperationFailed { volume, generation, problem } => {
                self.operation_failed(&volume, generation, problem)
            }
            Command::OperationAbandoned { volume, generation, problem } => {
                self.operation_abandoned(&volume, generation, problem)
            }
            Command::Publish { volume, node, mode, observed } => self.publish(&volume, &node, mode, observed),
            Command::ExportConfirmed { volume, node, generation } => {
                self.export_confirmed(&volume, &node, generation)
            }
            Command::GrantFailed { volume, node, generation, problem } => {
                self.grant_failed(&volume, &node, generation, problem)
            }
            Command::Unpublish { volume, node, require_proof } => {
                self.unpublish(&volume, node.as_ref(), require_proof)
            }
            Command::RegisterNode { node, boot, replaces, host_nqn, max_volumes } => {
                self.register_node(node, boot, replaces, host_nqn, max_volumes)
            }
            Command::PermitConnect { volume, node, generation, moment } => {
                self.permit_connect(&volume, &node, generation, moment)
            }
            Command::ReportDisconnected { volume, node, moment } => {
                self.report_disconnected(&volume, &node, moment)
            }
            Command::Reap { volume, migration, decision } => self.reap(&volume, migration, decision),
            Command::NodeIsOff { node, volume, up_to, words, proof } => {
                self.node_is_off(&node, volume.as_ref(), up_to, words, proof)
            }
            Command::Restore { backup, piece, volumes } => self.restore(backup, *piece, volumes),
            Command::RaiseEpoch { epoch } => Ok(self.raise_epoch(epoch)),
            Command::AdoptVolume { volume, from } => self.adopt_volume(*volume, from),
        }
    }

    /// Moves the clock forward, never back, and lets migrations past their deadline become overdue.
    fn advance_clock(&mut self, at: LedgerTime) {
        self.clock = self.clock.max(at);
        while let Some((deadline, _)) = self.deadlines.first() {
            if *deadline > self.clock {
                break;
            }
            if let Some((_, volume)) = self.deadlines.pop_first() {
                self.become_overdue(&volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(state: &mut State, command: Command) -> Response {
        state.apply(Entry { at: LedgerTime(0), command })
    }

    #[test]
    fn a_command_that_not_every_replica_knows_is_refused() {
        let mut state = State { cluster_version: 0, ..State::default() };
        let refusal = Refusal::VersionTooLow { needed: 1, current: 0 };
        assert_eq!(apply(&mut state, Command::Tick), Response::Refused(refusal));
    }

    #[test]
    fn the_cluster_version_never_goes_back() {
        let mut state = State::default();
        apply(&mut state, Command::SetClusterVersion { version: 3 });
        apply(&mut state, Command::SetClusterVersion { version: 2 });
        assert_eq!(state.cluster_version(), 3);
    }
}

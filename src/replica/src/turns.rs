//! The order in which a leader hands commands to consensus, so that none comes too late.
//!
//! One that was held up on its way may arrive when whoever asked for it was answered by another attempt, or gave up, or
//! died, and its caller went on. A later leader does not take it, for it is bound to its term; the same one might, and
//! undo what was decided since: a deletion that arrives after the volume was made anew, a publish after the unpublish.
//!
//! So whoever forwards a command first asks how many turns were taken, and sends that along. If anything about the same
//! volume or node has had a turn since, the command has none: either its caller has gone on, or somebody else came
//! between, and he who still waits asks again. No clock has a part in this.

use std::collections::VecDeque;

use planted::Bug;
use state_machine::{Command, NodeId, VolumeId};

/// So many turns are remembered; who asks to come after an older one is refused, as if it had been about the same.
const MOST_REMEMBERED: usize = 4_096;

/// What a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Volume(VolumeId),
    Node(NodeId),
    /// All of the ledger.
    Ledger,
    /// Time, which anything may pass by.
    Time,
}

/// The turns of one process, which are those of each term that it leads in.
#[derive(Debug, Default)]
pub struct Turns {
    taken: u64,
    latest: VecDeque<Subject>,
}

impl Turns {
    /// How many were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes a turn for `command`, unless something about the same had one after the first `since`; false then. Without
    /// `since` it always has one.
    pub fn take(&mut self, command: &Command, since: Option<u64>) -> bool {
        let subject = subject(command);
        if since.is_some_and(|since| self.had_one(&subject, since)) && !planted::is(Bug::LateAttempts) {
            return false;
        }
        if self.latest.len() == MOST_REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(subject);
        self.taken += 1;
        true
    }

    fn had_one(&self, subject: &Subject, since: u64) -> bool {
        let later = usize::try_from(self.taken.saturating_sub(since)).unwrap_or(usize::MAX);
        later > self.latest.len() || self.latest.iter().rev().take(later).any(|taken| taken == subject)
    }
}

fn subject(command: &Command) -> Subject {
    match command {
        Command::Tick => Subject::Time,
        Command::SetClusterVersion { .. } | Command::Restore { .. } | Command::RaiseEpoch { .. } => {
            Subject::Ledger
        }
        Command::CreateVolume { id: volume, .. }
        | Command::SlotWasFree { volume, .. }
        | Command::VolumeCreated { volume, .. }
        | Command::ExpandVolume { volume, .. }
        | Command::VolumeExpanded { volume, .. }
        | Command::DeleteVolume { volume }
        | Command::VolumeDeleted { volume, .. }
        | Command::OperationFailed { volume, .. }
        | Command::OperationAbandoned { volume, .. }
        | Command::Publish { volume, .. }
        | Command::ExportConfirmed { volume, .. }
        | Command::GrantFailed { volume, .. }
        | Command::Unpublish { volume, .. }
        | Command::PermitConnect { volume, .. }
        | Command::ReportDisconnected { volume, .. }
        | Command::Reap { volume, .. }
        | Command::NodeIsOff { volume: Some(volume), .. } => Subject::Volume(volume.clone()),
        Command::AdoptVolume { volume, .. } => Subject::Volume(volume.id.clone()),
        Command::RegisterNode { node, .. } | Command::NodeIsOff { node, volume: None, .. } => {
            Subject::Node(node.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use state_machine::Generation;

    use super::*;

    fn delete(volume: &str) -> Command {
        Command::DeleteVolume { volume: VolumeId::parse(volume).unwrap() }
    }

    fn unpublish(volume: &str) -> Command {
        Command::Unpublish { volume: VolumeId::parse(volume).unwrap(), node: None, require_proof: true }
    }

    fn created(volume: &str) -> Command {
        let generation = Generation::default();
        Command::VolumeCreated { volume: VolumeId::parse(volume).unwrap(), generation }
    }

    #[test]
    fn what_was_held_up_has_no_turn_once_something_about_the_same_had_one() {
        let mut turns = Turns::default();
        let since = turns.taken();
        assert!(turns.take(&unpublish("a"), Some(since)));
        assert!(!turns.take(&unpublish("a"), Some(since)), "itself, once more");
        assert!(!turns.take(&delete("a"), Some(since)));
        assert!(turns.take(&delete("b"), Some(since)), "about another volume");
        assert!(turns.take(&delete("a"), Some(turns.taken())), "asked again");
        assert!(turns.take(&unpublish("a"), None), "the leader's own");
        assert!(!turns.take(&delete("a"), Some(turns.taken() - 1)));
    }

    #[test]
    fn time_and_other_volumes_hold_nobody_up() {
        let mut turns = Turns::default();
        let since = turns.taken();
        for command in [Command::Tick, created("b"), Command::RaiseEpoch { epoch: 1 }] {
            assert!(turns.take(&command, None));
        }
        assert!(turns.take(&delete("a"), Some(since)));
        assert!(!turns.take(&Command::RaiseEpoch { epoch: 2 }, Some(since)));
    }

    #[test]
    fn what_is_remembered_no_more_counts_as_the_same() {
        let mut turns = Turns::default();
        let since = turns.taken();
        for _ in 0..MOST_REMEMBERED {
            assert!(turns.take(&delete("b"), None));
        }
        assert!(!turns.had_one(&subject(&delete("a")), since));
        assert!(turns.take(&delete("b"), None));
        assert!(!turns.take(&delete("a"), Some(since)));
        assert_eq!(turns.latest.len(), MOST_REMEMBERED);
    }
}

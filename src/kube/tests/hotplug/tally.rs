//! What was seen in runs.

use std::collections::BTreeMap;

use observer::hotplug::Reason;

use crate::world::{Ms, Pod};

/// What was counted, in one run or in many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) runs: u64,
    pub(crate) pods: u64,
    pub(crate) plugged: u64,
    pub(crate) unplugged: u64,
    /// A volume was unstaged while QEMU had it open: the VM pauses.
    pub(crate) pauses: u64,
    /// The same, when the API did not show that QEMU had it at the time its last pod was deleted: nobody who goes by
    /// the API could have known.
    pub(crate) unseen_pauses: u64,
    /// A deletion left a volume in use without a running pod that exposes it.
    pub(crate) left_alone: u64,
    pub(crate) unstages_refused: u64,
    pub(crate) verdicts: BTreeMap<Reason, u64>,
    /// From the first denial of a pod to the last.
    pub(crate) longest_denial_ms: Ms,
    /// From the first denial of a pod to its end; of one that was wanted again in between, too.
    pub(crate) longest_hold_ms: Ms,
    /// What was left that should have gone, in words.
    pub(crate) stuck: Vec<String>,
    pub(crate) seeds_with_pauses: Vec<u64>,
}

impl Tally {
    /// A pod is gone, or the run is over.
    pub(crate) fn pod_gone(&mut self, pod: &Pod, now: Ms) {
        let Some(since) = pod.held_since else { return };
        self.longest_hold_ms = self.longest_hold_ms.max(now - since);
        let last = pod.last_denied.unwrap_or(since);
        self.longest_denial_ms = self.longest_denial_ms.max(last - since);
    }

    pub(crate) fn denied(&self) -> u64 {
        self.count(Reason::LastHolder) + self.count(Reason::WaitingReady)
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.verdicts.get(&reason).copied().unwrap_or_default()
    }

    /// Adds the run of `seed`.
    pub(crate) fn add(&mut self, seed: u64, run: Self) {
        self.runs += 1;
        self.pods += run.pods;
        self.plugged += run.plugged;
        self.unplugged += run.unplugged;
        self.pauses += run.pauses;
        self.unseen_pauses += run.unseen_pauses;
        self.left_alone += run.left_alone;
        self.unstages_refused += run.unstages_refused;
        for (reason, count) in run.verdicts {
            *self.verdicts.entry(reason).or_default() += count;
        }
        self.longest_denial_ms = self.longest_denial_ms.max(run.longest_denial_ms);
        self.longest_hold_ms = self.longest_hold_ms.max(run.longest_hold_ms);
        self.stuck.extend(run.stuck.into_iter().map(|what| format!("seed {seed}: {what}")));
        if run.pauses + run.left_alone > 0 {
            self.seeds_with_pauses.push(seed);
        }
    }
}

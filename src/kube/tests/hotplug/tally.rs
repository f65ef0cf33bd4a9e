//! What was seen in runs.

use std::collections::BTreeMap;

use observer::hotplug::{Held, Reason};

use crate::guard::ms_since;
use crate::world::Ms;

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
    /// From the first denial of a hold to the last: for so long KubeVirt was kept from deleting a pod.
    pub(crate) longest_hold_ms: Ms,
    /// The same of a row of holds of one pod.
    pub(crate) longest_row_ms: Ms,
    /// Holds that began anew.
    pub(crate) begun_anew: u64,
    /// What was left that should have gone, in words.
    pub(crate) stuck: Vec<String>,
    pub(crate) seeds_with_pauses: Vec<u64>,
}

impl Tally {
    /// A deletion was denied: what stood on the pod, and what stands there now.
    pub(crate) fn denied_again(&mut self, before: Option<Held>, held: Held, now: Ms) {
        self.longest_hold_ms = self.longest_hold_ms.max(ms_since(held.since, now));
        self.longest_row_ms = self.longest_row_ms.max(ms_since(held.first, now));
        self.begun_anew += u64::from(before.is_some_and(|before| before.since != held.since));
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
        self.longest_hold_ms = self.longest_hold_ms.max(run.longest_hold_ms);
        self.longest_row_ms = self.longest_row_ms.max(run.longest_row_ms);
        self.begun_anew += run.begun_anew;
        self.stuck.extend(run.stuck.into_iter().map(|what| format!("seed {seed}: {what}")));
        if run.pauses + run.left_alone > 0 {
            self.seeds_with_pauses.push(seed);
        }
    }
}

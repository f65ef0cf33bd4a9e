//! What was acknowledged is on the appliance: from when a creation was acknowledged until somebody may have asked for a
//! deletion, the volume's disk is there. A part of I3, judged by the appliance's own log.

use std::collections::BTreeMap;

use crate::history::{ApplianceChange, History, Micros, Mutation, Operation, Request};

use super::seen::{Effect, OBSERVER_LEAD_MICROS, time};

/// Where a created volume was not kept. A history without a log of the appliance says nothing.
pub(super) fn lost_on_appliance(history: &History) -> Vec<String> {
    if history.appliance.is_empty() {
        return Vec::new();
    }
    let mut logs: BTreeMap<&str, Vec<&Mutation>> = BTreeMap::new();
    for mutation in &history.appliance {
        logs.entry(&mutation.volume).or_default().push(mutation);
    }
    let mut deletions: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history.operations.iter().filter(|operation| operation.effect() != Effect::None) {
        if let Request::Delete { volume } = &operation.request {
            deletions.entry(volume).or_default().push(operation);
        }
    }
    let judged = history.operations.iter().filter_map(|operation| {
        let Request::Create { volume, .. } = &operation.request else { return None };
        let volume = volume.as_str();
        let deletions = deletions.get(volume).map_or(&[][..], Vec::as_slice);
        let log = logs.get(volume).map_or(&[][..], Vec::as_slice);
        lost(operation, operation.acknowledged()?, deletions, log)
    });
    judged.collect()
}

fn lost(creation: &Operation, ended: Micros, deletions: &[&Operation], log: &[&Mutation]) -> Option<String> {
    let is_later = |deletion: &&&Operation| {
        deletion.effect() == Effect::Maybe || deletion.ended.is_some_and(|ended| ended >= creation.started)
    };
    let deleted = deletions.iter().filter(is_later).map(|deletion| deletion.started).min();
    let deleted = deleted.unwrap_or(Micros::MAX);
    if deleted <= ended {
        return None;
    }
    // Made anew after the deletion, or gone by it: both are somebody else's matter.
    let counts = |mutation: &&Mutation| match mutation.change {
        ApplianceChange::Created => true,
        ApplianceChange::Removed => mutation.at < deleted,
        ApplianceChange::Grown | ApplianceChange::Exported | ApplianceChange::Unexported => false,
    };
    let (before, after): (Vec<&Mutation>, Vec<&Mutation>) = log
        .iter()
        .copied()
        .filter(counts)
        .partition(|mutation| mutation.at <= ended.saturating_add(OBSERVER_LEAD_MICROS));
    let (what, acknowledged) = (&creation.request, time(ended));
    if before.last().is_none_or(|mutation| mutation.change == ApplianceChange::Removed) {
        return Some(format!("{what:?}, acknowledged at {acknowledged}, but the appliance does not have it"));
    }
    let removed = after.iter().find(|mutation| mutation.change == ApplianceChange::Removed)?;
    let at = time(removed.at);
    Some(format!("{what:?}, acknowledged at {acknowledged}, but the appliance loses it at {at}, unasked"))
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Answer;
    use ApplianceChange::{Created, Exported, Removed};

    const SOON: u64 = 3_000;

    fn made() -> Run {
        Run::with_volume().mutate(None, V, Created).mutate(None, V, Exported)
    }

    #[test]
    fn what_is_made_and_kept_is_fine_and_what_nobody_logged_is_not_judged() {
        assert_none(lost_on_appliance(&made().history()));
        assert_none(lost_on_appliance(&Run::with_volume().history()));
    }

    #[test]
    fn a_creation_that_was_taken_back_is_seen() {
        assert_one(lost_on_appliance(&made().mutate(None, V, Removed).history()), "does not have it");
        let never = Run::with_volume().mutate(None, "w", Created);
        assert_one(lost_on_appliance(&never.history()), "does not have it");
        let again = made().mutate(None, V, Removed).mutate(None, V, Created);
        assert_none(lost_on_appliance(&again.history()));
    }

    #[test]
    fn a_disk_goes_only_after_somebody_asked_for_that() {
        let removed = |run: Run| run.mutate_at(SOON, V, Removed).history();
        assert_one(lost_on_appliance(&removed(made())), "unasked");
        assert_none(lost_on_appliance(&removed(made().asked_in_vain(SOON - 1, delete()))));
        // At once, too.
        let at_once = made().asked(2, 5, delete(), Answer::Ok).mutate_at(4, V, Removed);
        assert_none(lost_on_appliance(&at_once.history()));
        assert_one(lost_on_appliance(&removed(made().asked(5, 6, delete(), refused()))), "unasked");
        assert_one(
            lost_on_appliance(&removed(made().asked(SOON + 1, SOON + 2, delete(), Answer::Ok))),
            "unasked",
        );
    }

    #[test]
    fn a_creation_that_was_not_acknowledged_may_be_taken_back() {
        let run = Run::default().asked(0, 1, create(SIZE, false), unknown());
        assert_none(lost_on_appliance(&run.mutate(None, V, Created).mutate(None, V, Removed).history()));
    }
}

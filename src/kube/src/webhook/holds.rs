//! Since when a pod is held, and which are.
//!
//! The annotation on the pod counts. This replica's own memory counts where there is none: it could not be written, or
//! is not seen yet.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use super::Shared;
use crate::hotplug::{Reason, Request, decide};
use crate::index::{HotplugFact, Why};

/// A hold that began so long before the longest one would have ended is a former one: KubeVirt tries again every 17
/// minutes at least, so it gave that deletion up long ago. The pod is held anew, if need be, from then on.
pub const FORMER_HOLD_AFTER: Duration = Duration::from_secs(1_800);
/// First denials that one replica remembers; the oldest goes first.
const MAX_OWN_HOLDS: usize = 10_000;

/// A pod whose deletion is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The name of its VMI.
    pub vmi: String,
    /// The node that it runs on.
    pub node: String,
    /// The VMI's volumes that are awaited elsewhere.
    pub volumes: Vec<String>,
    /// When its deletion was first denied.
    pub since: SystemTime,
    /// The row of the table that denies it.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
}

/// The first denials of this replica, by the pods' UIDs.
#[derive(Debug, Default)]
pub(super) struct OwnHolds {
    since: BTreeMap<String, SystemTime>,
}

impl OwnHolds {
    pub(super) fn since(&self, pod_uid: &str) -> Option<SystemTime> {
        self.since.get(pod_uid).copied()
    }

    pub(super) fn remember(&mut self, pod_uid: &str, since: SystemTime) {
        self.since.insert(pod_uid.to_owned(), since);
        if self.since.len() > MAX_OWN_HOLDS {
            let oldest = self.since.iter().min_by_key(|(_, since)| **since).map(|(uid, _)| uid.clone());
            self.since.retain(|uid, _| Some(uid) != oldest.as_ref());
        }
    }

    pub(super) fn forget(&mut self, pod_uid: &str) {
        self.since.remove(pod_uid);
    }
}

/// The moment in an annotation's text; what is no RFC 3339 moment is as good as nothing.
pub(super) fn moment(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// A moment as the annotation has it.
pub(super) fn text(moment: SystemTime) -> Option<String> {
    let whole_ms = Timestamp::try_from(moment).ok()?.as_millisecond();
    Timestamp::from_millisecond(whole_ms).ok().map(|moment| moment.to_string())
}

/// Since when a pod is held: as its annotation says, or else as this replica remembers; not if that hold is over.
pub(super) fn held_since(
    annotation: Option<&str>,
    own: Option<SystemTime>,
    now: SystemTime,
    max_hold: Duration,
) -> Option<SystemTime> {
    let is_former = |since: &SystemTime| {
        now.duration_since(*since).is_ok_and(|held| held >= max_hold.saturating_add(FORMER_HOLD_AFTER))
    };
    let believed = |since: Option<SystemTime>| since.filter(|since| !is_former(since));
    believed(annotation.and_then(moment)).or(believed(own))
}

impl Shared {
    pub(super) fn held_since(&self, hotplug: &HotplugFact, now: SystemTime) -> Option<SystemTime> {
        let own = self.own().since(&hotplug.pod.uid);
        held_since(hotplug.held_since.as_deref(), own, now, self.settings.guard.max_hold)
    }

    pub(super) fn holds(&self, now: SystemTime) -> Result<Vec<Hold>, Why> {
        let index = self.observer.index();
        let mut holds = Vec::new();
        for hotplug in index.attachment_pods()? {
            let Some(since) = self.held_since(hotplug, now) else { continue };
            let asked = Request { deletes_attachment_pod: true, by_kubevirt: true, dry_run: true };
            let facts = index.hotplug_facts(hotplug, asked, Some(since));
            let verdict = decide(&facts, now, &self.settings.guard);
            if verdict.allowed {
                continue;
            }
            let pod = &hotplug.pod;
            holds.push(Hold {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                vmi: facts.vmi.known().map(|vmi| vmi.name).unwrap_or_default(),
                node: pod.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                volumes: verdict.volumes,
                since,
                reason: verdict.reason,
                message: verdict.message,
            });
        }
        Ok(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_HOLD: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn since(annotation: Option<&str>, own: Option<SystemTime>, now: SystemTime) -> Option<SystemTime> {
        held_since(annotation, own, now, MAX_HOLD)
    }

    #[test]
    fn the_annotation_wins_over_the_memory_of_one_replica() {
        let written = text(at(0)).unwrap();
        assert_eq!(since(Some(&written), Some(at(20)), at(30)), Some(at(0)));
        assert_eq!(since(Some(&written), Some(at(0)), at(30)), Some(at(0)));
        assert_eq!(since(None, Some(at(20)), at(30)), Some(at(20)));
        assert_eq!(since(None, None, at(30)), None);
        for nonsense in ["", "yesterday", "2026-13-01T00:00:00Z", "1800000000"] {
            assert_eq!(since(Some(nonsense), Some(at(20)), at(30)), Some(at(20)), "{nonsense}");
        }
    }

    #[test]
    fn a_former_hold_does_not_shorten_the_next_one() {
        let written = text(at(0)).unwrap();
        let over = MAX_HOLD + FORMER_HOLD_AFTER;
        let last = at(0) + over - Duration::from_millis(1);
        assert_eq!(since(Some(&written), None, last), Some(at(0)), "it has expired, and is remembered");
        assert_eq!(since(Some(&written), None, at(0) + over), None);
        assert_eq!(since(Some(&written), Some(at(2_500)), at(2_510)), Some(at(2_500)));
        assert_eq!(since(None, Some(at(0)), at(0) + over), None);
    }

    #[test]
    fn a_moment_is_written_as_it_is_read() {
        let precise = at(0) + Duration::from_millis(123);
        assert_eq!(moment(&text(precise).unwrap()), Some(precise));
        assert!(text(precise).unwrap().ends_with(".123Z"), "{:?}", text(precise));
        assert_eq!(moment("2027-01-15T09:00:00+01:00"), moment("2027-01-15T08:00:00Z"));
    }

    #[test]
    fn the_memory_has_a_bound() {
        let mut own = OwnHolds::default();
        for number in 0..=MAX_OWN_HOLDS {
            own.remember(&number.to_string(), at(number as u64));
        }
        assert_eq!(own.since.len(), MAX_OWN_HOLDS);
        assert_eq!(own.since("0"), None);
        assert_eq!(own.since("1"), Some(at(1)));
        own.forget("1");
        assert_eq!(own.since("1"), None);
    }
}

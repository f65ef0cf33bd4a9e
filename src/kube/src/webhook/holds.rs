//! Since when pods are held, as their annotations say and as this replica remembers, and which are held.
//!
//! The annotations count. This replica's own memory counts where there are none: they could not be written, or are not
//! seen yet.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use super::Shared;
use crate::hotplug::{Facts, Held, Reason, Request, Settings, Verdict, decide};
use crate::index::{Answer, HotplugFact, Why};
use crate::objects::pod::{HELD_FIRST, HELD_SINCE};

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

/// The holds that this replica knows of by itself, by the pods' UIDs.
#[derive(Debug, Default)]
pub(super) struct OwnHolds {
    held: BTreeMap<String, Held>,
}

impl OwnHolds {
    pub(super) fn of(&self, pod_uid: &str) -> Option<Held> {
        self.held.get(pod_uid).copied()
    }

    pub(super) fn remember(&mut self, pod_uid: &str, held: Held) {
        self.held.insert(pod_uid.to_owned(), held);
        if self.held.len() > MAX_OWN_HOLDS {
            let oldest = self.held.iter().min_by_key(|(_, held)| held.since).map(|(uid, _)| uid.clone());
            self.held.retain(|uid, _| Some(uid) != oldest.as_ref());
        }
    }

    pub(super) fn forget(&mut self, pod_uid: &str) {
        self.held.remove(pod_uid);
    }
}

/// Now, as exactly as an annotation has it: what one replica remembers is what the others read.
pub(super) fn now() -> SystemTime {
    let now = SystemTime::now();
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now - Duration::from_nanos(u64::from(since_1970.subsec_nanos() % 1_000_000))
}

/// The moment in an annotation's text.
fn moment(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// A moment as the annotation has it.
pub(super) fn text(moment: SystemTime) -> Option<String> {
    let whole_ms = Timestamp::try_from(moment).ok()?.as_millisecond();
    Timestamp::from_millisecond(whole_ms).ok().map(|moment| moment.to_string())
}

/// What the annotations of a pod say, and the name of one that cannot be read.
///
/// A version before this one wrote `held-since` alone, and leaves a `held-first` that it finds as it is: one that no row
/// of holds can have begun with is another row's.
pub(super) fn noted(hotplug: &HotplugFact, settings: &Settings) -> (Option<Held>, Option<&'static str>) {
    let Some(text) = &hotplug.held_since else { return (None, None) };
    let Some(since) = moment(text) else { return (None, Some(HELD_SINCE)) };
    let alone = Held { since, first: since };
    let Some(text) = &hotplug.held_first else { return (Some(alone), None) };
    let Some(first) = moment(text) else { return (Some(alone), Some(HELD_FIRST)) };
    let is_of_row = since.duration_since(first).is_ok_and(|before| before < settings.row());
    (Some(if is_of_row { Held { since, first } } else { alone }), None)
}

/// Whether the pod has what the VM is to have: KubeVirt has no reason to delete it, whatever it tried before.
fn is_wanted(facts: &Facts) -> bool {
    let Answer::Known(vmi) = &facts.vmi else { return false };
    let hotplugged = vmi.spec_volumes.iter().filter(|(_, volume)| volume.hotplug).map(|(name, _)| name);
    hotplugged.eq(facts.pod.volumes.keys())
}

impl Shared {
    pub(super) fn holds(&self, now: SystemTime) -> Result<Vec<Hold>, Why> {
        let index = self.observer.index();
        let mut holds = Vec::new();
        for hotplug in index.attachment_pods()? {
            let (noted, _) = noted(hotplug, &self.settings.guard);
            let remembered = self.own().of(&hotplug.pod.uid);
            if noted.is_none() && remembered.is_none() {
                continue;
            }
            let asked = Request { deletes_attachment_pod: true, by_kubevirt: true, dry_run: true };
            let facts = index.hotplug_facts(hotplug, asked, noted, remembered);
            let verdict = decide(&facts, now, &self.settings.guard);
            if verdict.allowed || verdict.begins || is_wanted(&facts) {
                continue;
            }
            holds.push(hold(facts, verdict));
        }
        Ok(holds)
    }
}

fn hold(facts: Facts, verdict: Verdict) -> Hold {
    Hold {
        vmi: facts.vmi.known().map(|vmi| vmi.name).unwrap_or_default(),
        node: facts.pod.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace: facts.pod.namespace,
        pod: facts.pod.name,
        volumes: verdict.volumes,
        since: verdict.held.since,
        reason: verdict.reason,
        message: verdict.message,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap as Map, BTreeSet};

    use super::*;
    use crate::hotplug::{AttachmentPod, PodPhase, WAITING_READY_LIMIT};

    const SETTINGS: Settings = Settings {
        strict: false,
        max_hold: Duration::from_secs(600),
        waiting_ready_limit: WAITING_READY_LIMIT,
    };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn held(since: u64, first: u64) -> Option<Held> {
        Some(Held { since: at(since), first: at(first) })
    }

    fn annotated(since: Option<&str>, first: Option<&str>) -> HotplugFact {
        let pod = AttachmentPod {
            namespace: "vms".to_owned(),
            name: "old".to_owned(),
            uid: "uid-old".to_owned(),
            created: None,
            terminating: false,
            phase: PodPhase::Running,
            node: None,
            is_trigger: false,
            containers_ready: true,
            volumes: Map::new(),
            exposes: BTreeSet::new(),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        HotplugFact { pod, owner: None, held_since: owned(since), held_first: owned(first) }
    }

    fn read(since: Option<&str>, first: Option<&str>) -> (Option<Held>, Option<&'static str>) {
        noted(&annotated(since, first), &SETTINGS)
    }

    #[test]
    fn annotations_are_read_as_they_are_written() {
        let (since, first) = (text(at(900)).unwrap(), text(at(0)).unwrap());
        assert_eq!(read(Some(&since), Some(&first)), (held(900, 0), None));
        assert_eq!(read(Some(&since), None), (held(900, 900), None), "as the version before wrote it");
        assert_eq!(read(None, Some(&first)), (None, None));
        let precise = at(0) + Duration::from_millis(123);
        assert_eq!(moment(&text(precise).unwrap()), Some(precise));
        assert!(text(precise).unwrap().ends_with(".123Z"), "{:?}", text(precise));
        let now = now();
        assert_eq!(moment(&text(now).unwrap()), Some(now), "nothing of it is lost");
        assert_eq!(moment("2027-01-15T09:00:00+01:00"), moment("2027-01-15T08:00:00Z"));
    }

    #[test]
    fn what_is_no_moment_is_as_good_as_nothing_and_named() {
        let fine = text(at(0)).unwrap();
        for nonsense in ["yesterday", "2026-13-01T00:00:00Z", "1800000000"] {
            assert_eq!(read(Some(nonsense), Some(&fine)), (None, Some(HELD_SINCE)), "{nonsense}");
            assert_eq!(read(Some(&fine), Some(nonsense)), (held(0, 0), Some(HELD_FIRST)), "{nonsense}");
        }
    }

    #[test]
    fn a_beginning_of_another_row_does_not_count() {
        let row = SETTINGS.row().as_secs();
        let of =
            |since: u64, first: u64| read(Some(&text(at(since)).unwrap()), Some(&text(at(first)).unwrap())).0;
        assert_eq!(of(row - 1, 0), held(row - 1, 0));
        assert_eq!(of(row, 0), held(row, row));
        assert_eq!(of(0, 1), held(0, 0), "later than the hold itself");
    }

    #[test]
    fn the_memory_has_a_bound() {
        let mut own = OwnHolds::default();
        for number in 0..=MAX_OWN_HOLDS as u64 {
            own.remember(&number.to_string(), Held { since: at(number), first: at(0) });
        }
        assert_eq!(own.held.len(), MAX_OWN_HOLDS);
        assert_eq!(own.of("0"), None);
        assert_eq!(own.of("1"), held(1, 0));
        own.forget("1");
        assert_eq!(own.of("1"), None);
    }
}

//! One question, judged: facts gathered, the pure functions asked, and what follows from their word.

use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use super::review::{self, Answered};
use super::{Happening, Shared, holds};
use crate::events::{Event, EventReason};
use crate::hotplug::{Facts, Held, NewPod, Reason, Request, Verdict, decide, mutate};
use crate::index::{Answer, ClaimRef, HotplugFact};
use crate::objects::pod::{self, HELD_FIRST, HELD_SINCE};

/// How long writing the annotation may take. An answer waits for it, as it says if that failed.
const WRITE_TIMEOUT: Duration = Duration::from_millis(700);

impl Shared {
    /// Judges the deletion of a pod.
    pub(super) async fn judge_delete(&self, asked: review::Request) -> Answered {
        let dry_run = asked.is_dry_run();
        let Some(object) = &asked.old_object else {
            return Answered::allowed_with_warning(
                asked.uid,
                "rds-csi was not told which pod is deleted (oldObject), and allows it".to_owned(),
            );
        };
        let Some(hotplug) = pod::hotplug_fact(object) else {
            // Whatever it is, it has no say in it.
            self.decided(dry_run, Reason::NotGuarded);
            return Answered::allowed(asked.uid);
        };
        let now = holds::now();
        let request = Request {
            deletes_attachment_pod: asked.is("DELETE"),
            by_kubevirt: asked.user_info.username == self.kubevirt,
            dry_run,
        };
        let (noted, unreadable) = holds::noted(&hotplug, &self.settings.guard);
        let (facts, verdict) = self.decide(&hotplug, request, noted, now);
        self.decided(dry_run, verdict.reason);
        if verdict.allowed {
            return self.allow(asked.uid, &facts, verdict, now);
        }
        let mut message = verdict.message.clone();
        if let Some(name) = unreadable {
            message += &format!("; the annotation {name} is no time in RFC 3339, and was not counted");
        }
        if !dry_run {
            self.own().remember(&hotplug.pod.uid, verdict.held);
            let version = object.metadata.resource_version.as_deref();
            if let Err(why) = self.note(&facts, version, verdict.held).await {
                message += &format!(
                    ". The time that it is held is counted by this replica alone, as it cannot be written on the pod: {why}"
                );
            }
            self.tell_hold(&facts, &verdict);
        }
        Answered::denied(asked.uid, message)
    }

    /// Decides, and notes the pod if it may go: whatever is decided next, from watches that still show it, counts it as
    /// going.
    fn decide(
        &self,
        hotplug: &HotplugFact,
        request: Request,
        noted: Option<Held>,
        now: SystemTime,
    ) -> (Facts, Verdict) {
        let remembered = self.own().of(&hotplug.pod.uid);
        let mut departures = self.departures.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        let mut facts = self.observer.index().hotplug_facts(hotplug, request, noted, remembered);
        if let Answer::Known(siblings) = &mut facts.siblings {
            for sibling in siblings.iter_mut().filter(|sibling| departures.contains(&sibling.uid, at)) {
                sibling.terminating = true;
            }
        }
        let verdict = decide(&facts, now, &self.settings.guard);
        if verdict.allowed && request.deletes_attachment_pod && !request.dry_run {
            departures.note(&hotplug.pod.uid, at);
        }
        (facts, verdict)
    }

    /// Completes a pod that is to be created.
    pub(super) fn complete_new(&self, asked: review::Request) -> Result<Answered, serde_json::Error> {
        let of_interest = self.settings.mutate && asked.is("CREATE");
        let object = asked.object.as_ref().filter(|object| pod::is_attachment_pod(&object.metadata));
        let Some(object) = object.filter(|_| of_interest) else { return Ok(Answered::allowed(asked.uid)) };
        let volumes =
            pod::claims_by_volume(object.metadata.name.as_deref().unwrap_or_default(), &object.spec);
        let claims = self.observer.index().hotplug_claims(&asked.namespace, volumes.values());
        let unknown = claims.iter().find_map(|(name, claim)| match claim {
            Answer::Unknown(why) => Some(format!(
                "rds-csi does not know claim {name}, and leaves its volume in this pod as it is: {why}"
            )),
            Answer::Known(_) | Answer::Absent => None,
        });
        let new = NewPod {
            is_trigger: pod::is_trigger(&object.metadata),
            volumes,
            containers: pod::new_containers(&object.spec),
            claims,
        };
        let patch = mutate(&new);
        if !patch.is_empty() && !asked.is_dry_run() {
            (self.tell)(Happening::Mutated);
        }
        match unknown {
            _ if !patch.is_empty() => Answered::patched(asked.uid, &patch),
            Some(warning) => Ok(Answered::allowed_with_warning(asked.uid, warning)),
            None => Ok(Answered::allowed(asked.uid)),
        }
    }

    fn decided(&self, dry_run: bool, reason: Reason) {
        if !dry_run {
            (self.tell)(Happening::Decided(reason));
        }
    }

    fn allow(&self, uid: String, facts: &Facts, verdict: Verdict, now: SystemTime) -> Answered {
        if !facts.request.dry_run && facts.request.by_kubevirt {
            self.own().forget(&facts.pod.uid);
            if !verdict.begins {
                let held = now.duration_since(verdict.held.since).unwrap_or_default();
                info!(pod = %name(facts), reason = %verdict.reason, held_s = held.as_secs(), "a held attachment pod may go");
                (self.tell)(Happening::Released(held));
            }
            let reason = match verdict.reason {
                Reason::HoldExpired => Some(EventReason::HotplugHoldExpired),
                Reason::Leaving => Some(EventReason::HotplugVolumeLeaving),
                Reason::NotGuarded
                | Reason::NotRunning
                | Reason::TriggerPod
                | Reason::NamespaceGone
                | Reason::OwnerGone
                | Reason::VmiFinal
                | Reason::MigratedAway
                | Reason::NodeGone
                | Reason::NothingInUse
                | Reason::Covered
                | Reason::WaitingReady
                | Reason::LastHolder
                | Reason::Unknown => None,
            };
            if let Some(reason) = reason.filter(|_| verdict.event.is_some()) {
                self.post(facts, &verdict, reason, &facts.pod.uid);
            }
        }
        match verdict.reason {
            Reason::Unknown | Reason::HoldExpired => {
                warn!(pod = %name(facts), reason = %verdict.reason, "{}", verdict.message);
                Answered::allowed_with_warning(uid, verdict.message)
            }
            Reason::NotGuarded
            | Reason::NotRunning
            | Reason::TriggerPod
            | Reason::NamespaceGone
            | Reason::OwnerGone
            | Reason::VmiFinal
            | Reason::MigratedAway
            | Reason::NodeGone
            | Reason::NothingInUse
            | Reason::Covered
            | Reason::WaitingReady
            | Reason::Leaving
            | Reason::LastHolder => Answered::allowed(uid),
        }
    }

    /// Writes on the pod since when it is held, unless that stands there. Only on the very object that the request
    /// shows: what somebody else wrote since then is not overwritten.
    async fn note(&self, facts: &Facts, version: Option<&str>, held: Held) -> Result<(), String> {
        if facts.noted == Some(held) {
            return Ok(());
        }
        let client = self.client.clone().ok_or("there is no API server")?;
        let version = version.ok_or("the request does not say the pod's resourceVersion")?;
        let text = |moment| holds::text(moment).ok_or("the time is out of range");
        let pod = &facts.pod;
        let api: Api<ApiPod> = Api::namespaced(client, &pod.namespace);
        let patch = Patch::Merge(json!({"metadata": {
            "uid": pod.uid, "resourceVersion": version,
            "annotations": {HELD_SINCE: text(held.since)?, HELD_FIRST: text(held.first)?},
        }}));
        match timeout(WRITE_TIMEOUT, api.patch_metadata(&pod.name, &PatchParams::default(), &patch)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {WRITE_TIMEOUT:?}")),
        }
    }

    /// Tells of the first denial; later ones are the same event.
    fn tell_hold(&self, facts: &Facts, verdict: &Verdict) {
        if !verdict.begins {
            return;
        }
        info!(pod = %name(facts), reason = %verdict.reason, "an attachment pod is held: {}", verdict.message);
        let began = holds::text(verdict.held.since).unwrap_or_default();
        self.post(facts, verdict, EventReason::HotplugVolumeHeld, &format!("{}/{began}", facts.pod.uid));
    }

    /// Posts the verdict on the claims of the volumes that it is about.
    fn post(&self, facts: &Facts, verdict: &Verdict, reason: EventReason, key: &str) {
        let claims = verdict.volumes.iter().filter_map(|volume| facts.pod.volumes.get(volume));
        for name in claims {
            let claim = facts.claims.get(name).cloned().and_then(Answer::known);
            self.events.post(Event {
                claim: ClaimRef {
                    namespace: facts.pod.namespace.clone(),
                    name: name.clone(),
                    uid: claim.map(|claim| claim.uid),
                },
                reason,
                message: verdict.message.clone(),
                key: key.to_owned(),
            });
        }
    }
}

fn name(facts: &Facts) -> String {
    format!("{}/{}", facts.pod.namespace, facts.pod.name)
}

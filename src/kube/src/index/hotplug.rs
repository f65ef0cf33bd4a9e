//! The facts that the hotplug guard and the mutation decide on, put together for one pod.
//!
//! The pod itself comes with the request, as new as it can be; all else is answered from the watches, each part for
//! itself: what is not watched well makes that part unknown, not the others.

use std::collections::{BTreeMap, BTreeSet};

use state_machine::NodeId;

use super::{
    Answer, ClaimRef, HotplugFact, Index, MigrationPhase, PodFact, PodOwner, VmiFact, VmiPhase, Why,
};
use crate::hotplug::{AttachmentPod, Claim, Facts, Held, OwnerPod, Request, Vmi};

impl Index {
    /// What there is to know for the decision on `request` about `asked`.
    pub(crate) fn hotplug_facts(
        &self,
        asked: &HotplugFact,
        request: Request,
        noted: Option<Held>,
        remembered: Option<Held>,
    ) -> Facts {
        let pod = asked.pod.clone();
        let launcher = self.launcher(asked);
        let vmi = launcher.clone().and_then(|launcher| self.vmi_of(launcher));
        Facts {
            request,
            noted,
            remembered,
            namespace_terminating: Answer::of(self.namespaces.current().map(|namespaces| {
                let found = namespaces.get(&(pod.namespace.clone(), String::new()));
                found.map(|namespace| namespace.terminating)
            })),
            owner: Answer::of(launcher.clone().map(|launcher| {
                launcher.map(|launcher| OwnerPod {
                    terminating: launcher.terminating,
                    phase: launcher.phase,
                    vmi_uid: launcher.vmi_uid.clone(),
                })
            })),
            migration_targets: Answer::of(vmi.clone().and_then(|vmi| self.migration_targets(vmi))),
            siblings: Answer::of(self.siblings(asked, launcher)),
            vmi: Answer::of(vmi.map(|vmi| vmi.map(vmi_of_fact))),
            node: match &pod.node {
                Some(node) => self.node(node),
                None => Answer::Unknown(Why::Unclear("the pod does not say its node".to_owned())),
            },
            claims: self.hotplug_claims(&pod.namespace, pod.volumes.values()),
            pod,
        }
    }

    /// The claims of these names: whether they are bound, and to volumes of this driver.
    pub(crate) fn hotplug_claims<'a>(
        &self,
        namespace: &str,
        names: impl Iterator<Item = &'a String>,
    ) -> BTreeMap<String, Answer<Claim>> {
        let wanted: BTreeSet<&String> = names.collect();
        let known = self.claims.current().and_then(|claims| Ok((claims, self.volumes.current()?)));
        let (claims, volumes) = match known {
            Ok(tables) => tables,
            Err(why) => {
                return wanted.into_iter().map(|name| (name.clone(), Answer::Unknown(why.clone()))).collect();
            }
        };
        // One walk over the volumes for all claims: they are not kept by claim.
        let is_wanted =
            |claim: &ClaimRef| claim.namespace == namespace && wanted.iter().any(|name| **name == claim.name);
        let ours: BTreeMap<&String, _> = volumes
            .values()
            .filter_map(|volume| Some((volume.claim.as_ref().filter(|claim| is_wanted(claim))?, volume)))
            .map(|(claim, volume)| (&claim.name, (claim, volume)))
            .collect();
        let of = |name: &String| {
            let Some(claim) = claims.get(&(namespace.to_owned(), name.clone())) else {
                return Answer::Absent;
            };
            // A claim that was made anew under the same name is another volume's.
            let volume = ours.get(name).filter(|(of, _)| of.uid.as_ref().is_none_or(|uid| *uid == claim.uid));
            Answer::Known(Claim {
                uid: claim.uid.clone(),
                bound: claim.bound,
                ours: volume.is_some(),
                block: volume.is_some_and(|(_, volume)| volume.block),
            })
        };
        wanted.into_iter().map(|name| (name.clone(), of(name))).collect()
    }

    /// Every attachment pod that is known, for looking through all holds.
    pub(crate) fn attachment_pods(&self) -> Result<impl Iterator<Item = &HotplugFact>, Why> {
        Ok(self.pods.current()?.values().filter_map(|pod| pod.hotplug.as_deref()))
    }

    /// The virt-launcher pod that owns the attachment pod.
    fn launcher(&self, asked: &HotplugFact) -> Result<Option<&PodFact>, Why> {
        let pods = self.pods.current()?;
        let Some((name, uid)) = &asked.owner else { return Ok(None) };
        let found = pods.get(&(asked.pod.namespace.clone(), name.clone()));
        Ok(found.filter(|pod| pod.uid == *uid))
    }

    fn vmi_of(&self, launcher: Option<&PodFact>) -> Result<Option<&VmiFact>, Why> {
        let Some(PodFact { namespace, owner: PodOwner::Vm(name), .. }) = launcher else { return Ok(None) };
        match self.vmis.current() {
            Ok(vmis) => Ok(vmis.get(&(namespace.clone(), name.clone()))),
            // Without KubeVirt there are no virtual machines.
            Err(Why::NotInstalled(_)) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Where the VMI's unfinished migrations go. Before the hand-off the VMI itself does not say it: then the
    /// migration object does, or the node of its target's virt-launcher pod.
    fn migration_targets(&self, vmi: Option<&VmiFact>) -> Result<Option<BTreeSet<NodeId>>, Why> {
        let Some(vmi) = vmi else { return Ok(None) };
        let unfinished: Vec<_> = in_namespace(self.vmims.current()?, &vmi.namespace)
            .filter(|vmim| vmim.vmi == vmi.name && vmim.phase == MigrationPhase::Unfinished)
            .collect();
        if unfinished.is_empty() {
            return Ok(None);
        }
        let by_vmi = vmi.migration.as_ref();
        let by_vmi = by_vmi.filter(|state| unfinished.iter().any(|vmim| vmim.uid == state.uid));
        let mut targets: BTreeSet<_> = unfinished.iter().filter_map(|vmim| vmim.target.clone()).collect();
        targets.extend(by_vmi.and_then(|state| state.target.clone()));
        let target_pods = in_namespace(self.pods.current()?, &vmi.namespace).filter(|pod| {
            let of = pod.migration.as_ref();
            of.is_some_and(|uid| unfinished.iter().any(|vmim| vmim.uid == *uid))
        });
        targets.extend(target_pods.filter_map(|pod| pod.node.clone()));
        Ok(Some(targets))
    }

    /// The other attachment pods of the same VMI: those of its virt-launcher pods.
    fn siblings(
        &self,
        asked: &HotplugFact,
        launcher: Result<Option<&PodFact>, Why>,
    ) -> Result<Option<Vec<AttachmentPod>>, Why> {
        let owner = launcher?.map(|launcher| &launcher.owner);
        let Some(PodOwner::Vm(vm)) = owner else { return Ok(None) };
        // One walk over the namespace's pods: whose launcher is whose is known at its end.
        let (mut launchers, mut others) = (BTreeSet::new(), Vec::new());
        for pod in in_namespace(self.pods.current()?, &asked.pod.namespace) {
            match (&pod.hotplug, &pod.owner) {
                (Some(hotplug), _) if pod.uid != asked.pod.uid => others.push(hotplug),
                (Some(_), _) => {}
                (None, PodOwner::Vm(of)) if of == vm => {
                    launchers.insert(&pod.uid);
                }
                (None, PodOwner::Vm(_) | PodOwner::Launcher(_) | PodOwner::None) => {}
            }
        }
        others.retain(|other| other.owner.as_ref().is_some_and(|(_, uid)| launchers.contains(uid)));
        let found: Vec<_> = others.into_iter().map(|hotplug| hotplug.pod.clone()).collect();
        Ok((!found.is_empty()).then_some(found))
    }
}

fn in_namespace<'a, F>(
    facts: &'a BTreeMap<super::Key, F>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a F> {
    facts
        .range((namespace.to_owned(), String::new())..)
        .take_while(move |((of, _), _)| of == namespace)
        .map(|(_, fact)| fact)
}

fn vmi_of_fact(fact: &VmiFact) -> Vmi {
    Vmi {
        name: fact.name.clone(),
        uid: fact.uid.clone(),
        finished: fact.phase == VmiPhase::Final,
        deleting: fact.deleting,
        node: fact.node.clone(),
        spec_volumes: fact.spec_volumes.clone(),
        volume_status: fact.volume_status.clone(),
    }
}

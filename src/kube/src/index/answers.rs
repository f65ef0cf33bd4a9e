//! Nodes, claims, attachments and pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use state_machine::{NodeId, VolumeId};

use super::{Answer, Index, Key, PodFact, PodOwner, VolumeFact, Why};

/// The claim that a volume is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; a volume that is reserved for a claim by hand may not have it.
    pub uid: Option<String>,
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A node that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its UID: a node that is deleted and registers again has another.
    pub uid: String,
    /// It bears the taint `node.kubernetes.io/out-of-service`: somebody vouches that it is off (DESIGN, proof (c)).
    pub out_of_service: bool,
    /// Its deletion has begun; it is not deleted yet.
    pub deleting: bool,
}

/// A VolumeAttachment that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentSeen {
    /// The node that it is for.
    pub node: NodeId,
    /// `status.attached`.
    pub attached: bool,
    /// Its deletion has begun.
    pub deleting: bool,
}

/// A pod that uses a volume's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is bound to.
    pub node: Option<NodeId>,
    /// Its deletion has begun.
    pub terminating: bool,
    /// The VMI that it belongs to, by name.
    pub vm: Option<String>,
}

/// Who uses a volume's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// All pods belong to one VM: its virt-launchers and hotplug pods.
    OneVm {
        /// The VMI's name.
        vm: String,
        /// The pods, in the order of their names.
        pods: Vec<PodSeen>,
    },
    /// The pods belong to several VMs, or one of them to none.
    NotOneVm {
        /// The pods, in the order of their names.
        pods: Vec<PodSeen>,
    },
}

impl Index {
    /// Whether the node is there. Absent: the Node object is deleted, or never was.
    pub fn node(&self, node: &NodeId) -> Answer<NodeSeen> {
        Answer::of(self.nodes.current().map(|nodes| {
            nodes.get(&(node.as_str().to_owned(), String::new())).map(|fact| NodeSeen {
                uid: fact.uid.clone(),
                out_of_service: fact.out_of_service,
                deleting: fact.deleting,
            })
        }))
    }

    /// Whether a PersistentVolume has this handle.
    pub fn persistent_volume(&self, volume: &VolumeId) -> Answer<()> {
        Answer::of(self.volumes.current().map(|volumes| of_handle(volumes, volume).next().map(drop)))
    }

    /// The claim that the volume is or was bound to, for events on it.
    ///
    /// It is answered from facts that may be old: a binding does not change while the volume lives.
    pub fn claim(&self, volume: &VolumeId) -> Answer<ClaimRef> {
        Answer::of(self.find_claim(volume))
    }

    /// The volume's VolumeAttachments.
    pub fn volume_attachments(&self, volume: &VolumeId) -> Answer<Vec<AttachmentSeen>> {
        Answer::of(self.find_attachments(volume))
    }

    /// The pods that use the volume's claim, by VM. Absent: no pod does.
    pub fn users(&self, volume: &VolumeId) -> Answer<Users> {
        Answer::of(self.find_users(volume))
    }

    pub(super) fn find_claim(&self, volume: &VolumeId) -> Result<Option<ClaimRef>, Why> {
        let found = bound_claim(of_handle(self.volumes.last_known()?, volume))?;
        if found.is_none() {
            self.volumes.current()?;
        }
        Ok(found)
    }

    fn find_attachments(&self, volume: &VolumeId) -> Result<Option<Vec<AttachmentSeen>>, Why> {
        let attachments = self.attachments.current()?;
        let mut seen = Vec::new();
        for persistent in of_handle(self.volumes.current()?, volume) {
            let of_volume = attachments
                .range((persistent.name.clone(), String::new())..)
                .take_while(|((name, _), _)| *name == persistent.name);
            seen.extend(of_volume.map(|(_, fact)| AttachmentSeen {
                node: fact.node.clone(),
                attached: fact.attached,
                deleting: fact.deleting,
            }));
        }
        Ok((!seen.is_empty()).then_some(seen))
    }

    /// The claim that the volume is bound to, if that very claim still is there.
    pub(super) fn live_claim(&self, volume: &VolumeId) -> Result<Option<ClaimRef>, Why> {
        let claims = self.claims.current()?;
        let Some(claim) = bound_claim(of_handle(self.volumes.current()?, volume))? else { return Ok(None) };
        // A claim that was deleted and made anew under the same name is another volume's.
        let is_there = claims
            .get(&(claim.namespace.clone(), claim.name.clone()))
            .is_some_and(|fact| claim.uid.as_ref().is_none_or(|uid| *uid == fact.uid));
        Ok(is_there.then_some(claim))
    }

    fn find_users(&self, volume: &VolumeId) -> Result<Option<Users>, Why> {
        let all = self.pods.current()?;
        let Some(claim) = self.live_claim(volume)? else { return Ok(None) };
        let in_namespace = || {
            all.range((claim.namespace.clone(), String::new())..)
                .take_while(|((namespace, _), _)| *namespace == claim.namespace)
                .map(|(_, pod)| pod)
        };
        let mut pods = Vec::new();
        let mut vms = BTreeSet::new();
        let mut unresolved = None;
        for pod in in_namespace().filter(|pod| !pod.is_finished() && pod.claims.contains(&claim.name)) {
            let vm = match &pod.owner {
                PodOwner::None => None,
                PodOwner::Vm(vm) => Some(vm.clone()),
                PodOwner::Launcher(uid) => match in_namespace().find(|launcher| launcher.uid == *uid) {
                    Some(PodFact { owner: PodOwner::Vm(vm), .. }) => Some(vm.clone()),
                    Some(_) | None => {
                        unresolved = Some(pod.name.clone());
                        continue;
                    }
                },
            };
            vms.insert(vm.clone());
            pods.push(PodSeen {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                node: pod.node.clone(),
                terminating: pod.terminating,
                vm,
            });
        }
        let mut vms = vms.into_iter();
        match (vms.next(), vms.next(), unresolved) {
            // That the others disagree does not depend on the one that is not known.
            (Some(_), Some(_), _) | (Some(None), None, _) => Ok(Some(Users::NotOneVm { pods })),
            (_, None, Some(pod)) => Err(Why::Unclear(format!(
                "pod {}/{pod} uses the claim, and the virt-launcher pod that owns it is not there",
                claim.namespace
            ))),
            (Some(Some(vm)), None, None) => Ok(Some(Users::OneVm { vm, pods })),
            (None, _, _) => Ok(None),
        }
    }
}

/// The PersistentVolumes with this handle; more than one only if somebody made one by hand.
fn of_handle<'a>(
    facts: &'a BTreeMap<Key, VolumeFact>,
    volume: &VolumeId,
) -> impl Iterator<Item = &'a VolumeFact> {
    let handle = volume.as_str().to_owned();
    facts
        .range((handle.clone(), String::new())..)
        .take_while(move |((of, _), _)| *of == handle)
        .map(|(_, fact)| fact)
}

fn bound_claim<'a>(volumes: impl Iterator<Item = &'a VolumeFact>) -> Result<Option<ClaimRef>, Why> {
    let mut claims: Vec<_> = volumes.filter_map(|volume| volume.claim.as_ref()).collect();
    claims.dedup();
    match claims.as_slice() {
        [] => Ok(None),
        [claim] => Ok(Some((*claim).clone())),
        [one, other, ..] => {
            Err(Why::Unclear(format!("PersistentVolumes of this volume are bound to {one} and to {other}")))
        }
    }
}

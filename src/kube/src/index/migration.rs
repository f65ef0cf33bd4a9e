//! Virtual machines and their migrations (KUBEVIRT.md, "Live migration as the driver sees it").
//!
//! KubeVirt says two things of a migration, in two objects that are watched apart: the
//! VirtualMachineInstanceMigration has a phase, the VirtualMachineInstance a node and a `migrationState`, which still
//! is the PREVIOUS migration's until the hand-off. So a migration runs as long as any migration object of the VMI is
//! unfinished, and it ended in a certain way only if both objects agree on that, matched by UID.

use std::collections::BTreeMap;
use std::time::Instant;

use state_machine::{NodeId, VmiObservation, VolumeId};

use super::{Answer, Index, Key, MigrationFact, MigrationPhase, Table, VmiFact, VmiPhase, VmimFact, Why};

/// KubeVirt's `completionTimeoutPerGiB` where nothing else is set, in seconds (since v1.4.0).
pub const DEFAULT_COMPLETION_SECONDS_PER_GIB: u64 = 150;

/// KubeVirt counts guest memory in units of this many bytes, begun ones whole, although it calls them GiB.
const COMPLETION_UNIT_BYTES: u64 = 1_000_000_000;

/// A VMI that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a VM that is restarted has another.
    pub uid: String,
    /// The node that it runs on.
    pub node: Option<NodeId>,
}

/// What KubeVirt says of the migration of the VM that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationSeen {
    /// A migration of the VMI is unfinished, in whatever phase and between whatever nodes.
    Running {
        /// The UID of the last unfinished one.
        uid: String,
    },
    /// None is unfinished, and the VM runs on one of the two nodes.
    Ended {
        /// It runs on the target.
        completed: bool,
        /// The node that the VM is not on.
        lost: NodeId,
        /// The migration's UID, if the VMI names the one between these two nodes.
        uid: Option<String>,
    },
}

impl Index {
    /// The VMI that uses the volume's claim. Absent: none does.
    pub fn vm(&self, volume: &VolumeId) -> Answer<VmSeen> {
        Answer::of(self.find_vmi(volume).map(|found| {
            found.map(|vmi| VmSeen {
                namespace: vmi.namespace.clone(),
                name: vmi.name.clone(),
                uid: vmi.uid.clone(),
                node: vmi.node.clone(),
            })
        }))
    }

    /// What the proposer of a publish says of the volume's VM.
    pub fn vmi_observation(&self, volume: &VolumeId) -> VmiObservation {
        let Ok(Some(vmi)) = self.find_vmi(volume) else { return VmiObservation::Unknown };
        match self.vmims.current() {
            Ok(_) if last_unfinished(&self.vmims, vmi).is_some() => VmiObservation::Migrating,
            Ok(_) => VmiObservation::NotMigrating,
            Err(_) => VmiObservation::Unknown,
        }
    }

    /// What became of the migration of the volume's VM from `source` to `target`. Absent: no VMI uses the volume.
    ///
    /// Only facts that were listed at or after `newer_than` count, but for an unfinished migration: a connection that died silently is noticed late,
    /// and what is decided on this cannot be undone. See [`Observer::refresh`](crate::Observer::refresh).
    pub fn migration(
        &self,
        volume: &VolumeId,
        source: &NodeId,
        target: &NodeId,
        newer_than: Instant,
    ) -> Answer<MigrationSeen> {
        Answer::of(self.find_migration(volume, source, target, newer_than))
    }

    /// How long KubeVirt lets a migration of the volume's VM take, in seconds. Absent: no VMI uses the volume.
    ///
    /// It only sizes a timeout, so it is answered from facts that may be old. Without a word of the VMI or the
    /// KubeVirt object it is KubeVirt's default; post-copy, which KubeVirt does not limit, is not regarded.
    pub fn completion_timeout_seconds(&self, volume: &VolumeId) -> Answer<u64> {
        Answer::of(self.find_completion_timeout(volume))
    }

    fn find_vmi(&self, volume: &VolumeId) -> Result<Option<&VmiFact>, Why> {
        let vmis = match self.vmis.current() {
            Ok(vmis) => vmis,
            // Without KubeVirt there are no virtual machines.
            Err(Why::NotInstalled(_)) => return Ok(None),
            Err(why) => return Err(why),
        };
        let Some(claim) = self.live_claim(volume)? else { return Ok(None) };
        one_of(&claim.namespace, &claim.name, vmis)
    }

    fn find_migration(
        &self,
        volume: &VolumeId,
        source: &NodeId,
        target: &NodeId,
        newer_than: Instant,
    ) -> Result<Option<MigrationSeen>, Why> {
        // That it is not finished may be old: whoever believes it too long only waits.
        if let Ok(Some(vmi)) = self.find_vmi(volume)
            && let Ok(_) = self.vmims.current()
            && let Some(vmim) = last_unfinished(&self.vmims, vmi)
        {
            return Ok(Some(MigrationSeen::Running { uid: vmim.uid.clone() }));
        }
        match self.vmis.newer_than(newer_than) {
            Ok(_) => {}
            Err(Why::NotInstalled(_)) => return Ok(None),
            Err(why) => return Err(why),
        }
        let Some(vmi) = self.find_vmi(volume)? else { return Ok(None) };
        self.vmims.newer_than(newer_than)?;
        agree(vmi, of_vmi(&self.vmims, vmi).max_by_key(|vmim| vmim.created_at_s))?;
        let node = match (&vmi.node, vmi.phase) {
            (Some(node), VmiPhase::Running) => node,
            (_, VmiPhase::Starting | VmiPhase::Final) | (None, VmiPhase::Running) => {
                return Err(Why::Unclear(format!("VMI {}/{} does not run", vmi.namespace, vmi.name)));
            }
        };
        let (completed, lost) = match node {
            node if node == target => (true, source),
            node if node == source => (false, target),
            node => {
                let name = format!("{}/{}", vmi.namespace, vmi.name);
                return Err(Why::Unclear(format!(
                    "VMI {name} runs on {node}, neither {source} nor {target}"
                )));
            }
        };
        let between = vmi
            .migration
            .as_ref()
            .filter(|state| state.source.as_ref() == Some(source) && state.target.as_ref() == Some(target));
        if between.is_some_and(|state| state.succeeded() != completed) {
            return Err(Why::Unclear(format!(
                "VMI {}/{} runs on {node}, and its migration from {source} to {target} says otherwise",
                vmi.namespace, vmi.name
            )));
        }
        let uid = between.map(|state| state.uid.clone());
        Ok(Some(MigrationSeen::Ended { completed, lost: lost.clone(), uid }))
    }

    fn find_completion_timeout(&self, volume: &VolumeId) -> Result<Option<u64>, Why> {
        let vmis = match self.vmis.last_known() {
            Ok(vmis) => vmis,
            Err(Why::NotInstalled(_)) => return Ok(None),
            Err(why) => return Err(why),
        };
        let Some(claim) = self.find_claim(volume)? else { return Ok(None) };
        let Some(vmi) = one_of(&claim.namespace, &claim.name, vmis)? else {
            self.vmis.current()?;
            return Ok(None);
        };
        let Some(memory_bytes) = vmi.memory_bytes else {
            return Err(Why::Unclear(format!("VMI {}/{} does not say its memory", vmi.namespace, vmi.name)));
        };
        let of_vmi = vmi.migration.as_ref();
        // There is one KubeVirt object in a cluster; if there were two, the longer time does no harm.
        let cluster = self.settings.last_known().ok().into_iter().flat_map(|facts| facts.values());
        let seconds_per_gib = of_vmi
            .and_then(|state| state.completion_seconds_per_gib)
            .or_else(|| cluster.clone().filter_map(|settings| settings.completion_seconds_per_gib).max())
            .unwrap_or(DEFAULT_COMPLETION_SECONDS_PER_GIB);
        let may_disrupt = of_vmi.and_then(|state| state.allow_workload_disruption).unwrap_or_else(|| {
            cluster.clone().any(|settings| settings.allow_workload_disruption == Some(true))
        });
        let units = memory_bytes.div_ceil(COMPLETION_UNIT_BYTES);
        let seconds = units.saturating_mul(seconds_per_gib);
        Ok(Some(if may_disrupt { seconds.saturating_mul(2) } else { seconds }))
    }
}

impl MigrationFact {
    /// KubeVirt marks a failed migration as completed too.
    fn succeeded(&self) -> bool {
        self.completed && !self.failed
    }

    fn has_ended(&self) -> bool {
        self.completed || self.failed
    }
}

/// Whether the VMI tells of the same last migration as the migration objects do. Each is watched on its own, and
/// what is seen of one may be older than what is seen of the other.
fn agree(vmi: &VmiFact, last: Option<&VmimFact>) -> Result<(), Why> {
    let name = || format!("VMI {}/{}", vmi.namespace, vmi.name);
    if let Some(state) = &vmi.migration
        && !state.has_ended()
    {
        return Err(Why::Unclear(format!("{} says that migration {} has not ended", name(), state.uid)));
    }
    let Some(last) = last else { return Ok(()) };
    let state = vmi.migration.as_ref().filter(|state| state.uid == last.uid);
    let agrees = match last.phase {
        MigrationPhase::Succeeded => state.is_some_and(MigrationFact::succeeded),
        // One that failed before the hand-off never shows in the VMI.
        MigrationPhase::Failed => state.is_none_or(|state| !state.succeeded()),
        MigrationPhase::Unfinished => false,
    };
    if agrees {
        Ok(())
    } else {
        Err(Why::Unclear(format!("{} does not tell yet how migration {} ended", name(), last.uid)))
    }
}

/// The VMI in `namespace` that uses `claim`: the one that is not over yet, if there are several.
fn one_of<'a>(
    namespace: &str,
    claim: &str,
    vmis: &'a BTreeMap<Key, VmiFact>,
) -> Result<Option<&'a VmiFact>, Why> {
    let mut using: Vec<_> = vmis
        .range((namespace.to_owned(), String::new())..)
        .take_while(|((of, _), _)| of == namespace)
        .map(|(_, vmi)| vmi)
        .filter(|vmi| vmi.claims.iter().any(|used| used == claim))
        .collect();
    if using.iter().any(|vmi| vmi.phase != VmiPhase::Final) {
        using.retain(|vmi| vmi.phase != VmiPhase::Final);
    }
    match using.as_slice() {
        [] => Ok(None),
        [vmi] => Ok(Some(*vmi)),
        [one, other, ..] => Err(Why::Unclear(format!(
            "several VMIs in {namespace} use the claim, {} and {} among them",
            one.name, other.name
        ))),
    }
}

/// The VMI's migrations. Those of one that had the same name and is gone say nothing of this one.
fn of_vmi<'a>(vmims: &'a Table<VmimFact>, vmi: &'a VmiFact) -> impl Iterator<Item = &'a VmimFact> {
    vmims
        .facts
        .range((vmi.namespace.clone(), String::new())..)
        .take_while(|((namespace, _), _)| *namespace == vmi.namespace)
        .map(|(_, vmim)| vmim)
        .filter(|vmim| vmim.vmi == vmi.name && vmim.created_at_s >= vmi.created_at_s)
}

fn last_unfinished<'a>(vmims: &'a Table<VmimFact>, vmi: &'a VmiFact) -> Option<&'a VmimFact> {
    of_vmi(vmims, vmi)
        .filter(|vmim| vmim.phase == MigrationPhase::Unfinished)
        .max_by_key(|vmim| vmim.created_at_s)
}

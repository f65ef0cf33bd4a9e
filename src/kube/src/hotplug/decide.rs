//! The verdict on the deletion of an attachment pod: facts in, verdict out.
//!
//! The first row that matches decides. "Sibling" means another attachment pod of the VMI on the same node that is no
//! trigger pod; "covers" means that it is not terminating, runs, all its containers are ready, and one of them exposes
//! the volume, of the same claim.
//!
//! | # | Condition | Verdict: reason |
//! |---|---|---|
//! | 1 | no DELETE of an attachment pod, or another user | allow: NotGuarded |
//! | 2 | the pod is terminating, or does not run | allow: NotRunning |
//! | 3 | it is a trigger pod | allow: TriggerPod |
//! | 4 | its namespace is terminating or gone | allow: NamespaceGone |
//! | 5 | its owner is no Pod, missing, terminating or ended | allow: OwnerGone |
//! | 6 | the VMI is missing, another one, deleting or ended | allow: VMIFinal |
//! | 7 | the VMI is on another node, and no unfinished migration goes to this one | allow: MigratedAway |
//! | 8 | the node is missing, or tainted out-of-service | allow: NodeGone |
//! | 9 | no volume is protected | allow: NothingInUse |
//! | 10 | siblings cover every protected volume, and row 11 does not match | allow: Covered |
//! | 11 | strict, several hotplug volumes, a sibling, some not Ready for one; held < 120 s | deny: WaitingReady |
//! | 12 | not covered, no sibling at all, and each such volume is leaving | allow, with an event: Leaving |
//! | 13 | not covered, held < max-hold | deny: LastHolder |
//! | 14 | held for max-hold | allow, with a Warning: HoldExpired |
//!
//! "Held" is counted from the first denial of the hold that the decision belongs to ([`hold`](super::hold)).
//!
//! A volume is protected if the pod lists it, its claim is bound to a volume of this driver, and the VMI uses it: its
//! status is Ready or MountedToPod, or AttachedToNode by way of this very pod (virt-handler may be mounting it), or the
//! guest has it. Memory-dump and utility volumes never are. A volume is leaving if its claim is no longer bound: nobody
//! can make another pod for it. That the VMI's spec no longer has it is not enough, as the guest takes its time to let
//! a disk go, and its status says when it did.
//!
//! Rows are looked at in this order, and facts only as far as a row needs them. What is needed and not known allows:
//! the guard is there to help KubeVirt, not to stop it, and the node's in-use check protects without it.

use std::time::{Duration, SystemTime};

use super::facts::{
    AttachmentPod, Facts, PodPhase, Reason, Settings, SpecVolume, Verdict, Vmi, VolumePhase, VolumeStatus,
};
use super::hold::Current;
use super::say;
use crate::index::{Answer, Why};

/// A row that matched, before its sentence.
pub(super) struct Row<'a> {
    pub(super) reason: Reason,
    /// The volumes that it is about.
    pub(super) volumes: Vec<&'a str>,
    /// What is not known, for [`Reason::Unknown`].
    pub(super) why: Option<Why>,
}

impl Row<'_> {
    fn of(reason: Reason) -> Self {
        Self { reason, volumes: Vec::new(), why: None }
    }
}

fn row(reason: Reason) -> Option<Row<'static>> {
    Some(Row::of(reason))
}

/// Decides on the deletion that `facts` speak of, at the time `now`.
pub fn decide(facts: &Facts, now: SystemTime, settings: &Settings) -> Verdict {
    let hold = Current::of(facts, now, settings);
    let held = hold.lasted(now, settings);
    let row = find_row(facts, held, settings)
        .unwrap_or_else(|why| Row { why: Some(why), ..Row::of(Reason::Unknown) });
    say::verdict(facts, row, hold, held, settings)
}

fn find_row<'a>(facts: &'a Facts, held: Duration, settings: &Settings) -> Result<Row<'a>, Why> {
    if let Some(row) = by_request(facts) {
        return Ok(row);
    }
    if let Some(row) = by_what_is_gone(facts)? {
        return Ok(row);
    }
    let Some(vmi) = live_vmi(facts)? else { return Ok(Row::of(Reason::VmiFinal)) };
    if let Some(row) = by_node(facts, vmi)? {
        return Ok(row);
    }
    by_volumes(facts, vmi, held, settings)
}

/// Rows 1 to 3: what the request itself says.
fn by_request(facts: &Facts) -> Option<Row<'static>> {
    let pod = &facts.pod;
    if !facts.request.deletes_attachment_pod || !facts.request.by_kubevirt {
        return row(Reason::NotGuarded);
    }
    if pod.terminating || pod.phase != PodPhase::Running {
        return row(Reason::NotRunning);
    }
    if pod.is_trigger { row(Reason::TriggerPod) } else { None }
}

/// Rows 4 and 5: the namespace and the virt-launcher pod.
fn by_what_is_gone(facts: &Facts) -> Result<Option<Row<'static>>, Why> {
    if known(&facts.namespace_terminating)?.is_none_or(|terminating| *terminating) {
        return Ok(row(Reason::NamespaceGone));
    }
    let gone = known(&facts.owner)?.is_none_or(|owner| owner.terminating || has_ended(owner.phase));
    Ok(if gone { row(Reason::OwnerGone) } else { None })
}

fn has_ended(phase: PodPhase) -> bool {
    match phase {
        PodPhase::Succeeded | PodPhase::Failed => true,
        PodPhase::Pending | PodPhase::Running | PodPhase::Other => false,
    }
}

/// The VMI, unless row 6 matches.
fn live_vmi(facts: &Facts) -> Result<Option<&Vmi>, Why> {
    let owner = known(&facts.owner)?;
    let vmi_uid = owner.and_then(|owner| owner.vmi_uid.as_deref());
    let vmi = known(&facts.vmi)?;
    Ok(vmi.filter(|vmi| Some(vmi.uid.as_str()) == vmi_uid && !vmi.deleting && !vmi.finished))
}

/// Rows 7 and 8: where the pod is, and where the VMI.
fn by_node(facts: &Facts, vmi: &Vmi) -> Result<Option<Row<'static>>, Why> {
    let Some(node) = &facts.pod.node else {
        return Err(Why::Unclear("the pod runs, and does not say on which node".to_owned()));
    };
    if vmi.node.as_ref() != Some(node)
        && known(&facts.migration_targets)?.is_none_or(|targets| !targets.contains(node))
    {
        return Ok(row(Reason::MigratedAway));
    }
    Ok(match known(&facts.node)? {
        Some(node) if !node.out_of_service => None,
        Some(_) | None => row(Reason::NodeGone),
    })
}

/// Rows 9 to 14: the volumes, and who else holds them.
fn by_volumes<'a>(
    facts: &'a Facts,
    vmi: &'a Vmi,
    held: Duration,
    settings: &Settings,
) -> Result<Row<'a>, Why> {
    let protected = protected(facts, vmi)?;
    if protected.is_empty() {
        return Ok(Row { reason: Reason::NothingInUse, volumes: protected, why: None });
    }
    let siblings = siblings(facts)?;
    if let Some(awaited) = awaited(vmi, &siblings, held, settings) {
        return Ok(Row { reason: Reason::WaitingReady, volumes: awaited, why: None });
    }
    let is_covered = |volume: &&str| siblings.iter().any(|sibling| covers(sibling, &facts.pod, volume));
    let (covered, uncovered): (Vec<_>, Vec<_>) = protected.into_iter().partition(is_covered);
    if uncovered.is_empty() {
        return Ok(Row { reason: Reason::Covered, volumes: covered, why: None });
    }
    let reason = if siblings.is_empty() && all_leave(facts, &uncovered)? {
        Reason::Leaving
    } else if held < settings.max_hold {
        Reason::LastHolder
    } else {
        Reason::HoldExpired
    };
    Ok(Row { reason, volumes: uncovered, why: None })
}

/// The pod's volumes that may not lose their last pod.
fn protected<'a>(facts: &'a Facts, vmi: &Vmi) -> Result<Vec<&'a str>, Why> {
    let mut protected = Vec::new();
    for (volume, claim) in &facts.pod.volumes {
        let in_use = vmi.volume_status.get(volume).is_some_and(|status| is_used(status, &facts.pod));
        let never_ready = vmi.spec_volumes.get(volume).is_some_and(|volume| volume.never_ready);
        if in_use && !never_ready && find_claim(facts, claim)?.is_some_and(|claim| claim.ours) {
            protected.push(volume.as_str());
        }
    }
    Ok(protected)
}

fn is_used(status: &VolumeStatus, pod: &AttachmentPod) -> bool {
    let mounted = match status.phase {
        VolumePhase::Ready | VolumePhase::MountedToPod => true,
        VolumePhase::AttachedToNode => status.attach_pod_uid.as_deref() == Some(pod.uid.as_str()),
        VolumePhase::Other => false,
    };
    (mounted || !status.target.is_empty()) && !status.never_ready
}

/// The other attachment pods that hold something of the VMI on the pod's node.
pub(super) fn siblings(facts: &Facts) -> Result<Vec<&AttachmentPod>, Why> {
    let pod = &facts.pod;
    let all = known(&facts.siblings)?.map(Vec::as_slice).unwrap_or_default();
    // A sibling on another node keeps nothing staged on this one, as it is in a migration.
    let is_sibling =
        |other: &&AttachmentPod| other.uid != pod.uid && other.node == pod.node && !other.is_trigger;
    Ok(all.iter().filter(is_sibling).collect())
}

fn runs(sibling: &AttachmentPod) -> bool {
    !sibling.terminating && sibling.phase == PodPhase::Running && sibling.containers_ready
}

/// Whether `sibling` keeps `volume` of `pod` on the node. A volume that was removed and added anew has another claim
/// under the same name.
fn covers(sibling: &AttachmentPod, pod: &AttachmentPod, volume: &str) -> bool {
    runs(sibling)
        && sibling.exposes.contains(volume)
        && sibling.volumes.get(volume) == pod.volumes.get(volume)
}

/// Row 11: the volumes that strict mode waits for, if it does.
///
/// The status speaks of the pod in `attach_pod_uid`: Ready for the pod that goes says nothing of the one that stays.
fn awaited<'a>(
    vmi: &'a Vmi,
    siblings: &[&AttachmentPod],
    held: Duration,
    settings: &Settings,
) -> Option<Vec<&'a str>> {
    let limit = settings.waiting_ready_limit.min(settings.max_hold);
    if !settings.strict || held >= limit || siblings.is_empty() {
        return None;
    }
    let is_ready = |volume: &str| {
        vmi.volume_status.get(volume).is_some_and(|status| {
            let of =
                |sibling: &&AttachmentPod| Some(sibling.uid.as_str()) == status.attach_pod_uid.as_deref();
            status.phase == VolumePhase::Ready && siblings.iter().any(|sibling| runs(sibling) && of(sibling))
        })
    };
    let waits_for = |(_, volume): &(&String, &SpecVolume)| volume.hotplug && !volume.never_ready;
    let hotplugged: Vec<_> =
        vmi.spec_volumes.iter().filter(waits_for).map(|(name, _)| name.as_str()).collect();
    let missing: Vec<_> = hotplugged.iter().copied().filter(|volume| !is_ready(volume)).collect();
    (hotplugged.len() > 1 && !missing.is_empty()).then_some(missing)
}

/// Row 12: whether all of these volumes are on their way out of the VM.
fn all_leave(facts: &Facts, volumes: &[&str]) -> Result<bool, Why> {
    for volume in volumes {
        let claim = match facts.pod.volumes.get(*volume) {
            Some(claim) => find_claim(facts, claim)?,
            None => None,
        };
        if claim.is_some_and(|claim| claim.bound) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn find_claim<'a>(facts: &'a Facts, claim: &str) -> Result<Option<&'a super::facts::Claim>, Why> {
    match facts.claims.get(claim) {
        Some(answer) => known(answer),
        None => Err(Why::Unclear(format!("nothing was said of claim {claim}"))),
    }
}

/// What is there, if anything; what is not known is an error.
fn known<T>(answer: &Answer<T>) -> Result<Option<&T>, Why> {
    match answer {
        Answer::Known(value) => Ok(Some(value)),
        Answer::Absent => Ok(None),
        Answer::Unknown(why) => Err(why.clone()),
    }
}

//! The sentence of a verdict: which pod, which volumes, what is awaited, and what to do about it.

use std::time::Duration;

use super::decide::Row;
use super::facts::{Facts, Reason, Settings, Severity, Verdict};
use super::hold::Current;

/// The most volumes that a sentence names; KubeVirt reports it in an event, which is cut after 1,024 bytes.
const NAMED_VOLUMES: usize = 8;

pub(super) fn verdict(
    facts: &Facts,
    row: Row<'_>,
    hold: Current,
    held: Duration,
    settings: &Settings,
) -> Verdict {
    let allowed = !matches!(row.reason, Reason::WaitingReady | Reason::LastHolder);
    let event = match row.reason {
        // Once a hold, not once an attempt.
        Reason::WaitingReady | Reason::LastHolder => hold.begins.then_some(Severity::Normal),
        Reason::Leaving => Some(Severity::Normal),
        Reason::HoldExpired => Some(Severity::Warning),
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
        | Reason::Unknown => None,
    };
    Verdict {
        allowed,
        reason: row.reason,
        message: sentence(facts, &row, held, settings),
        volumes: row.volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        held: hold.held,
        begins: hold.begins,
        event: event.filter(|_| !facts.request.dry_run),
    }
}

fn sentence(facts: &Facts, row: &Row<'_>, held: Duration, settings: &Settings) -> String {
    let pod = format!("attachment pod {}/{}", facts.pod.namespace, facts.pod.name);
    let volumes = list(&row.volumes);
    let held_s = held.as_secs();
    let hold_s = settings.max_hold.as_secs();
    match row.reason {
        Reason::NotGuarded => {
            "only deletions of attachment pods by KubeVirt's controller are guarded".to_owned()
        }
        Reason::NotRunning => format!("{pod} does not run or is terminating already"),
        Reason::TriggerPod => format!("{pod} only triggers provisioning"),
        Reason::NamespaceGone => format!("the namespace of {pod} is terminating"),
        Reason::OwnerGone => format!("the virt-launcher pod that owns {pod} is gone or ends"),
        Reason::VmiFinal => format!("the VMI of {pod} is gone or ends"),
        Reason::MigratedAway => format!("the VMI of {pod} runs on another node"),
        Reason::NodeGone => format!("the node of {pod} is gone or out of service"),
        Reason::NothingInUse => format!("the VM uses no volume of this driver through {pod}"),
        Reason::Covered => format!("other attachment pods expose {volumes}"),
        Reason::WaitingReady => format!(
            "{pod} is kept until {volumes} of the VM are Ready for the pod that replaces it; held for {held_s} s, at \
             most {} s; see `rds-csi ctl hotplug`",
            settings.waiting_ready_limit.min(settings.max_hold).as_secs()
        ),
        Reason::Leaving => format!("{volumes} of {pod} are leaving the VM, and nothing else holds them"),
        Reason::LastHolder => format!(
            "{pod} is the last that exposes {volumes} to a running VM; it is kept until another attachment pod that \
             exposes them is ready, or the VM let them go; held for {held_s} s, at most {hold_s} s; see `rds-csi ctl \
             hotplug`"
        ),
        Reason::HoldExpired => format!(
            "{pod} was kept for {held_s} s, and still nothing else exposes {volumes} to the running VM; it may go now, \
             and only the node's in-use check protects the VM"
        ),
        Reason::Unknown => {
            let why = row.why.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{pod} may go, as what the guard needs to know is not known: {why}")
        }
    }
}

/// "volumes a, b and 3 more".
fn list(volumes: &[&str]) -> String {
    let named = volumes.iter().take(NAMED_VOLUMES).copied().collect::<Vec<_>>().join(", ");
    let noun = if volumes.len() == 1 { "volume" } else { "volumes" };
    match volumes.len().saturating_sub(NAMED_VOLUMES) {
        0 => format!("{noun} {named}"),
        more => format!("{noun} {named} and {more} more"),
    }
}

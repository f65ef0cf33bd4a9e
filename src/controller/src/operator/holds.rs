//! What the hotplug webhook holds, in the operator protocol's messages.

use std::time::{Duration, SystemTime};

use observer::{Hold, Webhook};
use proto::operator::v1;
use tonic::Status;

/// The holds that this replica sees, oldest first.
pub(super) fn list(webhook: Option<&Webhook>) -> Result<v1::ListHotplugHoldsReply, Status> {
    let webhook = webhook.ok_or_else(|| {
        Status::failed_precondition(
            "the hotplug webhook is off; it is on if the controllers' settings have a table [hotplug]",
        )
    })?;
    // Another replica may see what this one does not.
    let mut holds = webhook.holds().map_err(|why| Status::unavailable(format!("not known here: {why}")))?;
    holds.sort_by_key(|hold| hold.since);
    let now = SystemTime::now();
    let holds = holds.into_iter().map(|hold| message(hold, now)).collect();
    Ok(v1::ListHotplugHoldsReply { holds })
}

fn message(hold: Hold, now: SystemTime) -> v1::HotplugHold {
    let since_1970 = hold.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    v1::HotplugHold {
        namespace: hold.namespace,
        pod: hold.pod,
        vmi: hold.vmi,
        node_id: hold.node,
        volumes: hold.volumes,
        since_unix_ms: whole_ms(since_1970),
        held_ms: whole_ms(now.duration_since(hold.since).unwrap_or_default()),
        reason: hold.reason.name().to_owned(),
        message: hold.message,
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

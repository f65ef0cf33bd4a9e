//! What the hotplug webhook holds, as a table for people.

use proto::operator::v1::{HotplugHold, ListHotplugHoldsReply};

use crate::table::Table;
use crate::units;

pub(super) fn holds(reply: &ListHotplugHoldsReply) -> String {
    let mut table = Table::new(["NAMESPACE", "POD", "VMI", "NODE", "VOLUMES", "HELD", "REASON", "WHY"]);
    for hold in &reply.holds {
        let HotplugHold { namespace, pod, vmi, node_id, volumes, held_ms, reason, message, .. } = hold;
        table.row([
            namespace.clone(),
            pod.clone(),
            vmi.clone(),
            node_id.clone(),
            volumes.join(", "),
            units::span(*held_ms),
            reason.clone(),
            message.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_shows_what_is_awaited_and_for_how_long() {
        let hold = HotplugHold {
            namespace: "vms".to_owned(),
            pod: "hp-volume-1".to_owned(),
            vmi: "web".to_owned(),
            node_id: "node-a".to_owned(),
            volumes: vec!["data".to_owned(), "logs".to_owned()],
            since_unix_ms: 1_800_000_000_000,
            held_ms: 12_000,
            reason: "LastHolder".to_owned(),
            message: "nothing else holds them".to_owned(),
        };
        let text = holds(&ListHotplugHoldsReply { holds: vec![hold] });
        let expected = "\
NAMESPACE  POD          VMI  NODE    VOLUMES     HELD    REASON      WHY
vms        hp-volume-1  web  node-a  data, logs  12.0 s  LastHolder  nothing else holds them
";
        assert_eq!(text, expected);
    }
}

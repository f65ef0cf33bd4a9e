//! Rules for what runs, one a function: objects in, what breaks the rule out. `broken` shows that each can fail.

mod access;
mod availability;
mod containers;
mod host;

use crate::chart::{SETS, render};
use crate::expect_none;
use crate::objects::Objects;

/// A rule: the objects of one rendering in, what breaks it out.
pub(crate) type Rule = fn(&Objects) -> Vec<String>;

/// All rules.
pub(crate) const RULES: &[(&str, Rule)] = &[
    ("no wildcard in RBAC, and no right to give rights", access::no_wildcards),
    ("Secrets are read by name only", access::secrets_by_name),
    ("no secret is in what is rendered", access::no_secret_values),
    ("what is referred to is there", access::references),
    ("node plugins get no key and no rights", access::nodes_have_nothing),
    ("webhooks fail open, soon, and only for attachment pods", access::webhooks_are_narrow),
    ("every container that serves is probed", containers::probes),
    ("every container has resources", containers::resources),
    ("every image has a fixed version", containers::images),
    ("what does not need the host is confined", containers::confined),
    ("replicas find each other and stay apart", availability::replicas),
    ("a drain takes one replica", availability::disruption_budget),
    ("a replica hands over before it ends", availability::hand_over),
    ("the ledger is on no volume of ours", availability::raft_data),
    ("sidecars fail over soon", availability::sidecars),
    ("the node plugin has what it needs of the host", host::node_plugin),
];

#[test]
fn every_rule_holds_for_every_set() {
    for set in SETS {
        let objects = render(set);
        for (name, rule) in RULES {
            expect_none(&format!("{set}: {name}"), &rule(&objects));
        }
    }
}

//! What keeps the controllers there.

use serde_json::Value;

use crate::objects::{Objects, Workload, list, name, selects, text};

/// How long a hand-over may take; the pod's grace has to be longer.
const HAND_OVER_SECONDS: u64 = 10;
/// How long the sidecars may be without a leader that does not answer.
const MAX_LEASE_SECONDS: u64 = 10;

fn stateful_sets(objects: &Objects) -> Vec<Workload<'_>> {
    objects
        .workloads()
        .into_iter()
        .filter(|workload| text(workload.object, "kind") == "StatefulSet")
        .collect()
}

/// The rule for each StatefulSet; that there is one is a rule as well.
fn check(objects: &Objects, rule: impl Fn(&Workload<'_>) -> Vec<(bool, &'static str)>) -> Vec<String> {
    let sets = stateful_sets(objects);
    let broken = |set: &Workload<'_>| {
        let place = name(set.object);
        rule(set)
            .into_iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, what)| format!("{place}: {what}"))
            .collect::<Vec<_>>()
    };
    if sets.is_empty() {
        vec!["there are no controllers".to_owned()]
    } else {
        sets.iter().flat_map(broken).collect()
    }
}

pub(super) fn replicas(objects: &Objects) -> Vec<String> {
    check(objects, |set| {
        let spec = &set.object["spec"];
        let labels = set.template.pointer("/metadata/labels");
        let service = objects.find("Service", text(spec, "serviceName")).unwrap_or(&Value::Null);
        let terms =
            list(set.spec(), "affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution");
        let apart = terms.iter().any(|term| {
            text(term, "topologyKey") == "kubernetes.io/hostname"
                && selects(term.pointer("/labelSelector/matchLabels"), labels)
        });
        vec![
            (
                spec["replicas"].as_u64().is_some_and(|count| count >= 3 && count % 2 == 1),
                "not 3, 5 or 7 replicas",
            ),
            (text(spec, "podManagementPolicy") == "Parallel", "starts one after the other"),
            (text(service, "spec/clusterIP") == "None", "its Service is not headless"),
            (
                service["spec"]["publishNotReadyAddresses"] == true,
                "replicas have no address before they are ready",
            ),
            (selects(service.pointer("/spec/selector"), labels), "its Service selects other pods"),
            (selects(spec.pointer("/selector/matchLabels"), labels), "it selects other pods"),
            (apart, "two replicas may be on one node"),
            (text(set.spec(), "priorityClassName") == "system-cluster-critical", "is not cluster-critical"),
        ]
    })
}

pub(super) fn disruption_budget(objects: &Objects) -> Vec<String> {
    check(objects, |set| {
        let labels = set.template.pointer("/metadata/labels");
        let mut budgets = objects.of_kind("PodDisruptionBudget");
        let guards = budgets.any(|budget| {
            budget["spec"]["maxUnavailable"] == 1
                && selects(budget.pointer("/spec/selector/matchLabels"), labels)
        });
        vec![(guards, "no disruption budget of 1")]
    })
}

pub(super) fn hand_over(objects: &Objects) -> Vec<String> {
    check(objects, |set| {
        let hands_over = |container: &&Value| {
            let command = list(container, "lifecycle/preStop/exec/command");
            let has_name = list(container, "env").iter().any(|variable| variable["name"] == "POD_NAME");
            // Nothing expands variables in a hook's command.
            let is_plain = command.iter().all(|word| word.as_str().is_some_and(|word| !word.contains('$')));
            command.get(1).is_some_and(|word| word == "hand-over") && is_plain && has_name
        };
        let grace = set.spec()["terminationGracePeriodSeconds"].as_u64().unwrap_or(0);
        vec![
            (set.containers().any(|container| hands_over(&container)), "no hook hands the leadership over"),
            (grace >= 2 * HAND_OVER_SECONDS, "is killed while it hands over"),
        ]
    })
}

/// Never a class of ours, whose volumes the controllers themselves would have to attach; never what goes with the pod.
pub(super) fn raft_data(objects: &Objects) -> Vec<String> {
    let driver =
        objects.of_kind("CSIDriver").map(|driver| text(driver, "metadata/name")).next().unwrap_or_default();
    let ours: Vec<_> = objects
        .of_kind("StorageClass")
        .filter(|class| text(class, "provisioner") == driver)
        .map(|class| text(class, "metadata/name"))
        .collect();
    check(objects, |set| {
        let claims = list(set.object, "spec/volumeClaimTemplates");
        let is_ours = |claim: &Value| ours.contains(&text(claim, "spec/storageClassName"));
        let has_class = |claim: &Value| !text(claim, "spec/storageClassName").is_empty();
        let on_host = list(set.spec(), "volumes")
            .iter()
            .any(|volume| text(volume, "name") == "raft" && volume.get("hostPath").is_some());
        let is_pinned = set.spec()["nodeSelector"].as_object().is_some_and(|selector| !selector.is_empty());
        let own_directory = set.containers().any(|container| {
            list(container, "volumeMounts").iter().any(|mount| {
                text(mount, "mountPath") == "/var/lib/rds-csi" && text(mount, "subPathExpr") == "$(POD_NAME)"
            })
        });
        let retained = text(set.object, "spec/persistentVolumeClaimRetentionPolicy/whenDeleted") == "Retain";
        vec![
            (!claims.iter().any(is_ours), "its data is on a volume of this driver"),
            // The cluster's default class may be ours.
            (claims.iter().all(has_class), "the class of its data is left to the cluster"),
            (claims.is_empty() == on_host, "its data is nowhere, or at two places"),
            (claims.is_empty() || retained, "its data goes with it"),
            (!on_host || is_pinned, "may be scheduled away from its data"),
            (!on_host || own_directory, "shares a directory of the host with another replica"),
        ]
    })
}

pub(super) fn sidecars(objects: &Objects) -> Vec<String> {
    check(objects, |set| {
        let arguments = |wanted: &str| -> Vec<String> {
            let container = set.containers().find(|container| text(container, "name") == wanted);
            let words = container.map_or(&[][..], |container| list(container, "args"));
            words.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let seconds = |arguments: &[String], flag: &str| {
            let prefix = format!("--leader-election-{flag}=");
            let value = arguments.iter().find_map(|word| word.strip_prefix(&prefix)?.strip_suffix('s'));
            value.and_then(|value| value.parse::<u64>().ok())
        };
        let is_quick = |name: &str| {
            let arguments = arguments(name);
            let (lease, renew, retry) = (
                seconds(&arguments, "lease-duration"),
                seconds(&arguments, "renew-deadline"),
                seconds(&arguments, "retry-period"),
            );
            arguments.iter().any(|word| word == "--leader-election")
                && matches!((lease, renew, retry), (Some(lease), Some(renew), Some(retry))
                    if lease <= MAX_LEASE_SECONDS && retry < renew && renew < lease)
        };
        let metadata = arguments("provisioner").iter().any(|word| word == "--extra-create-metadata");
        vec![
            (is_quick("provisioner"), "the provisioner is slow to fail over, or missing"),
            (is_quick("attacher"), "the attacher is slow to fail over, or missing"),
            (is_quick("resizer"), "the resizer is slow to fail over, or missing"),
            (metadata, "volumes are made without the names of their claims"),
        ]
    })
}

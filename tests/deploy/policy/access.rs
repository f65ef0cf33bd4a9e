//! Who may do what, and what is secret.

use serde_json::Value;

use crate::objects::{Objects, list, name, text};

/// Rights that give rights.
const RIGHTS_TO_RIGHTS: [&str; 3] = ["bind", "escalate", "impersonate"];
/// Secrets that the chart does not make: their names end so. The appliance's has its own value.
const MADE_ELSEWHERE: [&str; 4] = ["-controller-tls", "-operator-tls", "-node-ca", "-appliance"];
/// What every private key in text form begins with. Cut in two, so that this file has none.
const PRIVATE_KEY: &str = concat!("PRIVATE ", "KEY-----");

fn rules(objects: &Objects) -> impl Iterator<Item = (&Value, &Value)> {
    let roles = objects.of_kind("ClusterRole").chain(objects.of_kind("Role"));
    roles.flat_map(|role| list(role, "rules").iter().map(move |rule| (role, rule)))
}

fn has(rule: &Value, field: &str, word: &str) -> bool {
    list(rule, field).iter().any(|value| value == word)
}

pub(super) fn no_wildcards(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for (role, rule) in rules(objects) {
        for field in ["apiGroups", "resources", "verbs", "nonResourceURLs", "resourceNames"] {
            if list(rule, field).iter().any(|value| value.as_str().is_some_and(|word| word.contains('*'))) {
                found.push(format!("{}: a wildcard in {field}", name(role)));
            }
        }
        let verbs = RIGHTS_TO_RIGHTS.iter().filter(|verb| has(rule, "verbs", verb));
        found.extend(verbs.map(|verb| format!("{}: {verb}", name(role))));
    }
    found
}

/// Creation has no name yet; reading and writing have.
pub(super) fn secrets_by_name(objects: &Objects) -> Vec<String> {
    let is_open = |(role, rule): &(&Value, &Value)| {
        has(rule, "resources", "secrets")
            && (text(role, "kind") == "ClusterRole"
                || list(rule, "resourceNames").is_empty() && list(rule, "verbs") != ["create"])
    };
    rules(objects).filter(is_open).map(|(role, _)| format!("{}: any Secret", name(role))).collect()
}

pub(super) fn no_secret_values(objects: &Objects) -> Vec<String> {
    let secrets = objects.of_kind("Secret").map(name);
    let keys = objects.0.iter().filter(|object| object.to_string().contains(PRIVATE_KEY)).map(name);
    let variables = objects.workloads().into_iter().flat_map(|workload| {
        let of = |container: &Value| {
            let names = list(container, "env").iter().filter(|variable| !text(variable, "value").is_empty());
            let is_secret =
                |name: &str| ["KEY", "TOKEN", "PASS", "SECRET"].iter().any(|word| name.contains(word));
            let secret =
                names.map(|variable| text(variable, "name").to_uppercase()).filter(|name| is_secret(name));
            secret.map(|variable| format!("{}: {variable}", workload.place(container))).collect::<Vec<_>>()
        };
        workload.containers().flat_map(of).collect::<Vec<_>>()
    });
    secrets.chain(keys).chain(variables).collect()
}

/// Service accounts, ConfigMaps, roles, and the Secrets that install.md and the certificates' Job make.
pub(super) fn references(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |from: &Value, kind: &str, wanted: &str| {
        if objects.find(kind, wanted).is_none() {
            found.push(format!("{} refers to {kind} {wanted:?}, which is not there", name(from)));
        }
    };
    for workload in objects.workloads() {
        expect(workload.object, "ServiceAccount", text(workload.spec(), "serviceAccountName"));
        for volume in list(workload.spec(), "volumes") {
            for source in list(volume, "projected/sources") {
                if let Some(config_map) = source.get("configMap") {
                    expect(workload.object, "ConfigMap", text(config_map, "name"));
                }
            }
        }
    }
    for binding in objects.of_kind("ClusterRoleBinding").chain(objects.of_kind("RoleBinding")) {
        expect(binding, text(binding, "roleRef/kind"), text(binding, "roleRef/name"));
        for subject in list(binding, "subjects") {
            expect(binding, text(subject, "kind"), text(subject, "name"));
        }
    }
    for workload in objects.workloads() {
        let sources =
            list(workload.spec(), "volumes").iter().flat_map(|volume| list(volume, "projected/sources"));
        for secret in sources.filter_map(|source| source.get("secret")).map(|secret| text(secret, "name")) {
            if !MADE_ELSEWHERE.iter().any(|end| secret.ends_with(end)) {
                found.push(format!(
                    "{} mounts the Secret {secret:?}, which nobody makes",
                    name(workload.object)
                ));
            }
        }
    }
    found
}

/// A node's kubelet may read every Secret that its pods mount, whole: so only what opens nothing. And its plugin never
/// asks the API server.
pub(super) fn nodes_have_nothing(objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for workload in objects.workloads().into_iter().filter(|workload| workload.is_node()) {
        let account = text(workload.spec(), "serviceAccountName");
        if workload.spec()["automountServiceAccountToken"] != false {
            found.push(format!("{}: has a token for the API server", name(workload.object)));
        }
        let bindings = objects.of_kind("ClusterRoleBinding").chain(objects.of_kind("RoleBinding"));
        let bound = bindings.filter(|binding| {
            list(binding, "subjects").iter().any(|subject| text(subject, "name") == account)
        });
        found.extend(bound.map(|binding| format!("{}: gives the node plugins rights", name(binding))));
        for volume in list(workload.spec(), "volumes") {
            if volume.get("secret").is_some() {
                found.push(format!("{}: mounts a whole Secret", name(workload.object)));
            }
            for secret in list(volume, "projected/sources").iter().filter_map(|source| source.get("secret")) {
                let items: Vec<_> = list(secret, "items").iter().map(|item| text(item, "key")).collect();
                if items != ["ca.crt"] || !text(secret, "name").ends_with("-node-ca") {
                    found.push(format!(
                        "{}: mounts {items:?} of {}",
                        name(workload.object),
                        text(secret, "name")
                    ));
                }
            }
        }
    }
    found
}

pub(super) fn webhooks_are_narrow(objects: &Objects) -> Vec<String> {
    let kinds = ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"];
    let configurations = kinds.iter().flat_map(|kind| objects.of_kind(kind));
    let mut found = Vec::new();
    for configuration in configurations {
        for webhook in list(configuration, "webhooks") {
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    found.push(format!("{}: {what}", text(webhook, "name")));
                }
            };
            expect(text(webhook, "failurePolicy") == "Ignore", "does not fail open");
            expect(webhook["timeoutSeconds"].as_u64().is_some_and(|limit| limit <= 2), "may take long");
            expect(
                webhook["objectSelector"]["matchLabels"]["kubevirt.io"] == "hotplug-disk",
                "is asked about other pods",
            );
            let excluded = &webhook["namespaceSelector"]["matchExpressions"][0];
            expect(
                text(excluded, "operator") == "NotIn" && has(excluded, "values", "kube-system"),
                "is asked in kube-system",
            );
            let rule = &webhook["rules"][0];
            let is_deletion = has(rule, "operations", "DELETE");
            expect(list(rule, "resources") == ["pods"], "is asked about other things");
            expect(
                !is_deletion
                    || text(&webhook["matchConditions"][0], "expression").contains("kubevirt-controller"),
                "holds what others than KubeVirt delete",
            );
            let service = text(webhook, "clientConfig/service/name");
            expect(objects.find("Service", service).is_some(), "is answered by nobody");
        }
    }
    found
}

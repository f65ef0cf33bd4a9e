//! Each rule of `policy`, broken in every way that it forbids, has to say so.

use serde_json::{Value, json};

use crate::chart::render;
use crate::objects::Objects;
use crate::policy::RULES;

/// A change that breaks a rule: the rule's first words, kind and name of an object, where in it, what is put there
/// (null: nothing, it is taken away), and words of the answer.
type Break = (&'static str, (&'static str, &'static str), &'static str, Value, &'static str);

const CONTROLLERS: (&str, &str) = ("StatefulSet", "rds-csi-controller");
const NODES: (&str, &str) = ("DaemonSet", "rds-csi-node");
const WEBHOOK: (&str, &str) = ("ValidatingWebhookConfiguration", "rds-csi-webhook");
const ROLE: (&str, &str) = ("ClusterRole", "rds-csi-controller");
const SECRETS: (&str, &str) = ("Role", "rds-csi-certificates");

/// Breaks of what the set `everything` renders.
fn breaks() -> Vec<Break> {
    let mut all = access();
    all.extend(containers());
    all.extend(availability());
    all.extend(host());
    all
}

fn access() -> Vec<Break> {
    vec![
        ("no wildcard", ROLE, "/rules/0/verbs/0", json!("*"), "a wildcard in verbs"),
        ("no wildcard", ROLE, "/rules/0/resources/0", json!("*"), "a wildcard in resources"),
        ("no wildcard", ROLE, "/rules/0/resources/0", json!("pods/*"), "a wildcard in resources"),
        ("no wildcard", ROLE, "/rules/0/apiGroups/0", json!("*"), "a wildcard in apiGroups"),
        ("no wildcard", ROLE, "/rules/0/verbs/0", json!("escalate"), "escalate"),
        ("Secrets are", SECRETS, "/rules/1/resourceNames", Value::Null, "any Secret"),
        ("Secrets are", SECRETS, "/rules/0/verbs/0", json!("list"), "any Secret"),
        ("Secrets are", ROLE, "/rules/0/resources/0", json!("secrets"), "any Secret"),
        ("no secret", ("ConfigMap", "rds-csi-node"), "/kind", json!("Secret"), "Secret/rds-csi-node"),
        (
            "no secret",
            ("ConfigMap", "rds-csi-node"),
            "/data/key",
            json!(concat!("-----BEGIN PRIVATE ", "KEY-----")),
            "ConfigMap/rds-csi-node",
        ),
        (
            "no secret",
            CONTROLLERS,
            "/spec/template/spec/containers/0/env/1/name",
            json!("SSH_PASSWORD"),
            "SSH_PASSWORD",
        ),
        (
            "what is referred",
            CONTROLLERS,
            "/spec/template/spec/serviceAccountName",
            json!("default"),
            "ServiceAccount",
        ),
        (
            "what is referred",
            ("ConfigMap", "rds-csi-node"),
            "/metadata/name",
            json!("other"),
            "ConfigMap \"rds-csi-node\"",
        ),
        (
            "what is referred",
            CONTROLLERS,
            "/spec/template/spec/volumes/1/projected/sources/1/secret/name",
            json!("other"),
            "which nobody makes",
        ),
        (
            "what is referred",
            ("ClusterRoleBinding", "rds-csi-controller"),
            "/roleRef/name",
            json!("admin"),
            "\"admin\"",
        ),
        (
            "node plugins get",
            NODES,
            "/spec/template/spec/volumes/7/projected/sources/1/secret/name",
            json!("rds-csi-controller-tls"),
            "of rds-csi-controller-tls",
        ),
        (
            "node plugins get",
            NODES,
            "/spec/template/spec/volumes/7/projected/sources/1/secret/items/0/key",
            json!("tls.key"),
            "tls.key",
        ),
        ("node plugins get", NODES, "/spec/template/spec/volumes/0/secret", json!({}), "a whole Secret"),
        (
            "node plugins get",
            NODES,
            "/spec/template/spec/automountServiceAccountToken",
            Value::Null,
            "has a token",
        ),
        (
            "node plugins get",
            ("ClusterRoleBinding", "rds-csi-controller"),
            "/subjects/0/name",
            json!("rds-csi-node"),
            "gives the node plugins rights",
        ),
        ("webhooks", WEBHOOK, "/webhooks/0/failurePolicy", json!("Fail"), "does not fail open"),
        ("webhooks", WEBHOOK, "/webhooks/0/timeoutSeconds", json!(10), "may take long"),
        ("webhooks", WEBHOOK, "/webhooks/0/objectSelector", Value::Null, "other pods"),
        ("webhooks", WEBHOOK, "/webhooks/0/namespaceSelector", Value::Null, "kube-system"),
        ("webhooks", WEBHOOK, "/webhooks/0/matchConditions", Value::Null, "others than KubeVirt"),
        ("webhooks", WEBHOOK, "/webhooks/0/rules/0/resources/0", json!("services"), "other things"),
        ("webhooks", ("Service", "rds-csi-webhook"), "/metadata/name", json!("other"), "answered by nobody"),
    ]
}

fn containers() -> Vec<Break> {
    vec![
        (
            "every container that",
            CONTROLLERS,
            "/spec/template/spec/containers/0/livenessProbe",
            Value::Null,
            "/controller",
        ),
        (
            "every container that",
            CONTROLLERS,
            "/spec/template/spec/containers/0/livenessProbe",
            Value::Null,
            "of nobody",
        ),
        (
            "every container that",
            CONTROLLERS,
            "/spec/template/spec/containers/0/readinessProbe",
            Value::Null,
            "readiness",
        ),
        (
            "every container that",
            CONTROLLERS,
            "/spec/template/spec/containers/1/livenessProbe",
            Value::Null,
            "/provisioner",
        ),
        (
            "every container that",
            CONTROLLERS,
            "/spec/template/spec/containers/2/livenessProbe/httpGet/port",
            json!("typo"),
            "/attacher",
        ),
        (
            "every container that",
            NODES,
            "/spec/template/spec/containers/1/livenessProbe",
            Value::Null,
            "registrar",
        ),
        (
            "every container has",
            NODES,
            "/spec/template/spec/initContainers/0/resources",
            Value::Null,
            "modprobe",
        ),
        (
            "every container has",
            CONTROLLERS,
            "/spec/template/spec/containers/0/resources/limits",
            Value::Null,
            "memory limit",
        ),
        (
            "every container has",
            ("CronJob", "rds-csi-certificates"),
            "/spec/jobTemplate/spec/template/spec/containers/0/resources/requests/cpu",
            Value::Null,
            "requests no CPU",
        ),
        (
            "every image",
            NODES,
            "/spec/template/spec/containers/0/image",
            json!("a.example:5000/rds-csi"),
            "/node",
        ),
        (
            "every image",
            NODES,
            "/spec/template/spec/containers/0/image",
            json!("a.example/rds-csi:latest"),
            "/node",
        ),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/securityContext/runAsNonRoot",
            Value::Null,
            "as root",
        ),
        ("what does not", CONTROLLERS, "/spec/template/spec/securityContext/runAsUser", json!(0), "as root"),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/securityContext/seccompProfile",
            Value::Null,
            "seccomp",
        ),
        ("what does not", CONTROLLERS, "/spec/template/spec/hostNetwork", json!(true), "hostNetwork"),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/volumes/0/hostPath",
            json!({"path": "/"}),
            "of the host",
        ),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/containers/0/securityContext/privileged",
            json!(true),
            "privileged",
        ),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/containers/1/securityContext/capabilities",
            Value::Null,
            "keeps",
        ),
        (
            "what does not",
            CONTROLLERS,
            "/spec/template/spec/containers/0/securityContext/runAsUser",
            json!(0),
            "as root",
        ),
        (
            "what does not",
            NODES,
            "/spec/template/spec/containers/1/securityContext/privileged",
            json!(true),
            "registrar",
        ),
        (
            "what does not",
            NODES,
            "/spec/template/spec/initContainers/0/securityContext/capabilities/add/0",
            json!("SYS_ADMIN"),
            "adds capabilities",
        ),
        (
            "what does not",
            NODES,
            "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
            Value::Null,
            "write to its image",
        ),
    ]
}

fn availability() -> Vec<Break> {
    const TERMS: &str =
        "/spec/template/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    const HEADLESS: (&str, &str) = ("Service", "rds-csi-controller");
    const BUDGET: (&str, &str) = ("PodDisruptionBudget", "rds-csi-controller");
    const CLASS: &str = "/spec/volumeClaimTemplates/0/spec/storageClassName";
    vec![
        ("replicas find", CONTROLLERS, "/spec/replicas", json!(2), "replicas"),
        (
            "replicas find",
            CONTROLLERS,
            "/spec/podManagementPolicy",
            json!("OrderedReady"),
            "one after the other",
        ),
        ("replicas find", CONTROLLERS, TERMS, Value::Null, "on one node"),
        (
            "replicas find",
            CONTROLLERS,
            "/spec/template/spec/priorityClassName",
            Value::Null,
            "cluster-critical",
        ),
        ("replicas find", HEADLESS, "/spec/publishNotReadyAddresses", Value::Null, "before they are ready"),
        ("replicas find", HEADLESS, "/spec/clusterIP", Value::Null, "not headless"),
        ("replicas find", HEADLESS, "/spec/selector", json!({"a": "b"}), "selects other pods"),
        ("a drain", BUDGET, "/spec/maxUnavailable", json!(2), "no disruption budget"),
        ("a drain", BUDGET, "/spec/selector/matchLabels/a", json!("b"), "no disruption budget"),
        (
            "a replica hands",
            CONTROLLERS,
            "/spec/template/spec/containers/0/lifecycle",
            Value::Null,
            "no hook",
        ),
        (
            "a replica hands",
            CONTROLLERS,
            "/spec/template/spec/containers/0/lifecycle/preStop/exec/command/3",
            json!("$(POD_NAME)"),
            "no hook",
        ),
        (
            "a replica hands",
            CONTROLLERS,
            "/spec/template/spec/terminationGracePeriodSeconds",
            json!(10),
            "killed",
        ),
        ("the ledger", CONTROLLERS, CLASS, json!("rds-xfs"), "of this driver"),
        ("the ledger", CONTROLLERS, CLASS, Value::Null, "left to the cluster"),
        ("the ledger", CONTROLLERS, "/spec/volumeClaimTemplates", Value::Null, "nowhere"),
        (
            "the ledger",
            CONTROLLERS,
            "/spec/persistentVolumeClaimRetentionPolicy",
            Value::Null,
            "goes with it",
        ),
        (
            "sidecars",
            CONTROLLERS,
            "/spec/template/spec/containers/2/args/6",
            json!("--leader-election-lease-duration=15s"),
            "attacher",
        ),
        ("sidecars", CONTROLLERS, "/spec/template/spec/containers/3", Value::Null, "the resizer"),
        (
            "sidecars",
            CONTROLLERS,
            "/spec/template/spec/containers/1/args/10",
            json!("--v=5"),
            "names of their claims",
        ),
    ]
}

fn host() -> Vec<Break> {
    const SPEC: &str = "/spec/template/spec";
    let rows: [(&str, Value, &str); 8] = [
        ("/hostNetwork", Value::Null, "the pod's network"),
        ("/dnsPolicy", json!("ClusterFirst"), "do not resolve"),
        ("/hostPID", Value::Null, "is not seen"),
        ("/priorityClassName", Value::Null, "node-critical"),
        ("/containers/0/volumeMounts/1/mountPropagation", json!("HostToContainer"), "propagate"),
        ("/containers/0/volumeMounts/1/mountPath", json!("/kubelet"), "elsewhere"),
        ("/containers/0/securityContext/privileged", Value::Null, "may not mount"),
        ("/tolerations", json!([]), "every node"),
    ];
    let pointer = |path: &str| -> &'static str { String::leak(format!("{SPEC}{path}")) };
    rows.into_iter()
        .map(|(path, value, words)| ("the node plugin", NODES, pointer(path), value, words))
        .collect()
}

/// Puts `value` at `pointer` of the object, or takes away what is there.
fn put(objects: &mut Objects, (kind, name): (&str, &str), pointer: &str, value: Value) {
    let named = |object: &&mut Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let object = objects.0.iter_mut().find(named).unwrap_or_else(|| panic!("no {kind} {name}"));
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) if value.is_null() => {
            map.remove(key).unwrap_or_else(|| panic!("{kind} {name} has no {pointer}"));
        }
        Some(Value::Object(map)) => {
            map.insert(key.to_owned(), value);
        }
        Some(Value::Array(list)) => {
            let index: usize = key.parse().expect("an index");
            assert!(index < list.len(), "{kind} {name} has no {pointer}");
            if value.is_null() {
                list.remove(index);
            } else {
                list[index] = value;
            }
        }
        _ => panic!("{kind} {name} has no {parent}"),
    }
}

fn expect_seen(set: &str, breaks: Vec<Break>) {
    let whole = render(set);
    for (rule, object, pointer, value, words) in breaks {
        let (name, check) = RULES.iter().find(|(name, _)| name.starts_with(rule)).expect("a rule");
        let mut objects = whole.clone();
        put(&mut objects, object, pointer, value.clone());
        let found = check(&objects);
        assert!(
            found.iter().any(|mistake| mistake.contains(words)),
            "{name}: {value} at {pointer} of {object:?} was not seen: {found:?}"
        );
    }
}

#[test]
fn each_rule_sees_what_it_forbids() {
    let breaks = breaks();
    for (name, _) in RULES {
        assert!(breaks.iter().any(|(rule, ..)| name.starts_with(rule)), "nothing breaks {name:?}");
    }
    expect_seen("everything", breaks);
}

#[test]
fn a_ledger_on_the_host_has_its_own_rules() {
    let spec = "/spec/template/spec";
    let pointer = |path: &str| -> &'static str { String::leak(format!("{spec}{path}")) };
    expect_seen(
        "host-path",
        vec![
            ("the ledger", CONTROLLERS, pointer("/nodeSelector"), Value::Null, "away from its data"),
            (
                "the ledger",
                CONTROLLERS,
                pointer("/containers/0/volumeMounts/2/subPathExpr"),
                Value::Null,
                "with another replica",
            ),
            (
                "what does not",
                CONTROLLERS,
                pointer("/initContainers/0/securityContext/capabilities/add/0"),
                json!("SYS_ADMIN"),
                "adds capabilities",
            ),
        ],
    );
}

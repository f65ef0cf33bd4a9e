//! Each object, parsed into its type of the Kubernetes API and written again: what is lost or changed on the way is a
//! field that the API does not have, or has elsewhere.

use k8s_openapi::api::{admissionregistration, apps, batch, core, networking, policy, rbac, storage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::chart::{SETS, render};
use crate::custom;
use crate::expect_none;
use crate::objects::{name, text};

/// What is wrong with an object, one sentence each.
pub(crate) fn mistakes(object: &Value) -> Vec<String> {
    let check = match (text(object, "apiVersion"), text(object, "kind")) {
        ("v1", "ConfigMap") => through::<core::v1::ConfigMap>,
        ("v1", "Namespace") => through::<core::v1::Namespace>,
        ("v1", "Service") => through::<core::v1::Service>,
        ("v1", "ServiceAccount") => through::<core::v1::ServiceAccount>,
        ("apps/v1", "DaemonSet") => through::<apps::v1::DaemonSet>,
        ("apps/v1", "StatefulSet") => through::<apps::v1::StatefulSet>,
        ("batch/v1", "CronJob") => through::<batch::v1::CronJob>,
        ("batch/v1", "Job") => through::<batch::v1::Job>,
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<networking::v1::NetworkPolicy>,
        ("policy/v1", "PodDisruptionBudget") => through::<policy::v1::PodDisruptionBudget>,
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<rbac::v1::ClusterRole>,
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => through::<rbac::v1::ClusterRoleBinding>,
        ("rbac.authorization.k8s.io/v1", "Role") => through::<rbac::v1::Role>,
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<rbac::v1::RoleBinding>,
        ("storage.k8s.io/v1", "CSIDriver") => through::<storage::v1::CSIDriver>,
        ("storage.k8s.io/v1", "StorageClass") => through::<storage::v1::StorageClass>,
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
            through::<admissionregistration::v1::MutatingWebhookConfiguration>
        }
        ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration") => {
            through::<admissionregistration::v1::ValidatingWebhookConfiguration>
        }
        _ => custom::mistakes,
    };
    check(object).into_iter().map(|mistake| format!("{}: {mistake}", name(object))).collect()
}

fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
    match serde_json::from_value::<T>(object.clone()) {
        Ok(typed) => {
            let again = serde_json::to_value(typed).expect("an API object is JSON");
            let mut found = Vec::new();
            compare("", object, &again, &mut found);
            found
        }
        Err(error) => vec![error.to_string()],
    }
}

/// What of `given` is not in `kept`. What is empty says the same as what is absent.
fn compare(path: &str, given: &Value, kept: &Value, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                compare(&format!("{path}/{key}"), value, kept.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(&format!("{path}/{index}"), given, kept, found);
            }
        }
        (Value::Object(given), Value::Null) if given.is_empty() => {}
        (Value::Array(given), Value::Null) if given.is_empty() => {}
        (given, kept) if given == kept => {}
        (_, Value::Null) => found.push(format!("{path} is no field of the API")),
        (given, kept) => found.push(format!("{path} is {given}, which the API reads as {kept}")),
    }
}

#[test]
fn every_object_fits_its_type() {
    for set in SETS {
        let mistakes: Vec<_> = render(set).0.iter().flat_map(mistakes).collect();
        expect_none(set, &mistakes);
    }
}

#[test]
fn what_does_not_fit_is_seen() {
    let objects = render("everything");
    let breaks = [
        ("StatefulSet", "/spec/podManagementPolcy", Value::from("Parallel"), "/spec/podManagementPolcy"),
        ("StatefulSet", "/spec/replicas", Value::from("three"), "invalid type"),
        ("DaemonSet", "/spec/template/spec/containers/0/mountPropagation", Value::from("x"), "no field"),
        ("ClusterRole", "/rules/0/verb", Value::from("list"), "/rules/0/verb"),
        ("ServiceMonitor", "/spec/endpoints/0/intervall", Value::from("30s"), "intervall"),
    ];
    for (kind, pointer, value, sentence) in breaks {
        let mut object = objects.of_kind(kind).next().unwrap_or_else(|| panic!("no {kind}")).clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        parent.insert(key.to_owned(), value);
        let found = mistakes(&object);
        assert!(found.iter().any(|mistake| mistake.contains(sentence)), "{kind} {pointer}: {found:?}");
    }
}

//! Objects of other projects' CRDs, held against a list of the fields that the chart may use. The list was written by
//! hand from their documentation, as their schemas are not at hand here: it finds typing errors, not more.

use serde_json::Value;

use crate::objects::text;

/// Kinds and the paths of their fields; `*` is any key of a map or any element of a list.
const KINDS: &[(&str, &str, &[&str])] = &[
    (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        &[
            "spec/selector/matchLabels/*",
            "spec/endpoints/*/port",
            "spec/endpoints/*/path",
            "spec/endpoints/*/interval",
            "spec/endpoints/*/relabelings/*/sourceLabels/*",
            "spec/endpoints/*/relabelings/*/targetLabel",
        ],
    ),
    (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        &[
            "spec/groups/*/name",
            "spec/groups/*/rules/*/alert",
            "spec/groups/*/rules/*/expr",
            "spec/groups/*/rules/*/for",
            "spec/groups/*/rules/*/labels/*",
            "spec/groups/*/rules/*/annotations/*",
        ],
    ),
    ("cert-manager.io/v1", "Issuer", &["spec/selfSigned", "spec/ca/secretName"]),
    (
        "cert-manager.io/v1",
        "Certificate",
        &[
            "spec/secretName",
            "spec/commonName",
            "spec/isCA",
            "spec/duration",
            "spec/renewBefore",
            "spec/dnsNames/*",
            "spec/uris/*",
            "spec/usages/*",
            "spec/privateKey/algorithm",
            "spec/privateKey/size",
            "spec/privateKey/encoding",
            "spec/privateKey/rotationPolicy",
            "spec/issuerRef/kind",
            "spec/issuerRef/name",
        ],
    ),
];

/// What every object has.
const EVERY_KIND: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata/name",
    "metadata/namespace",
    "metadata/labels/*",
    "metadata/annotations/*",
];

/// The longest common name that cert-manager takes, in bytes.
const MAX_COMMON_NAME_BYTES: usize = 64;

/// What is wrong with an object of a CRD.
pub(crate) fn mistakes(object: &Value) -> Vec<String> {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    let Some((_, _, fields)) = KINDS.iter().find(|(v, k, _)| (*v, *k) == (version, kind)) else {
        return vec![format!("{version} {kind} is no kind that is known here")];
    };
    let mut paths = Vec::new();
    leaves(String::new(), object, &mut paths);
    let known = |path: &&String| EVERY_KIND.iter().chain(*fields).any(|field| fits(path, field));
    let mut found: Vec<_> = paths
        .iter()
        .filter(|path| !known(path))
        .map(|path| format!("{} is not known", path.replace('\u{0}', "/")))
        .collect();
    if text(object, "spec/commonName").len() > MAX_COMMON_NAME_BYTES {
        found.push(format!("spec/commonName is longer than {MAX_COMMON_NAME_BYTES} bytes"));
    }
    found
}

/// The paths of all values in `value` that are no maps or lists with something in them.
fn leaves(path: String, value: &Value, found: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}\u{0}{key}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| leaves(below(key), value, found));
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter()
                .enumerate()
                .for_each(|(index, value)| leaves(below(&index.to_string()), value, found));
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => found.push(path),
    }
}

/// Whether a path, parted by NUL as keys may have slashes, is the one that `field` means.
fn fits(path: &str, field: &str) -> bool {
    let (path, field): (Vec<_>, Vec<_>) = (path.split('\u{0}').collect(), field.split('/').collect());
    path.len() == field.len() && path.iter().zip(&field).all(|(key, wanted)| *wanted == "*" || key == wanted)
}

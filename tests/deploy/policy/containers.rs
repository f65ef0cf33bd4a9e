//! What every container has.

use serde_json::Value;

use crate::objects::{Objects, Workload, list, text};

/// The sidecar that turns CSI's Probe into HTTP. It serves another container's liveness, and none of its own: if its
/// answer is no, that other one has to be started again.
const PROBER: &str = "liveness-probe";
/// Where it serves.
const PROBER_PORT: u64 = 9808;

fn check(objects: &Objects, rule: impl Fn(&Workload<'_>, &Value) -> Vec<&'static str>) -> Vec<String> {
    let mut found = Vec::new();
    for workload in objects.workloads() {
        for container in workload.containers() {
            let place = workload.place(container);
            found.extend(rule(&workload, container).into_iter().map(|what| format!("{place}: {what}")));
        }
    }
    found
}

/// The port that a probe asks, by number.
fn probed_port(container: &Value, probe: &str) -> Option<u64> {
    let port = container.get(probe)?.pointer("/httpGet/port")?;
    port.as_u64().or_else(|| {
        let named = list(container, "ports").iter().find(|known| known["name"] == *port);
        named.and_then(|known| known["containerPort"].as_u64())
    })
}

pub(super) fn probes(objects: &Objects) -> Vec<String> {
    check(objects, |workload, container| {
        let arguments = list(container, "args").iter().filter_map(Value::as_str);
        let serves = !list(container, "ports").is_empty()
            || arguments.into_iter().any(|argument| argument.starts_with("--http-endpoint"));
        if !serves {
            return Vec::new();
        }
        let mut found = Vec::new();
        if text(container, "name") == PROBER {
            let mut others = workload.containers();
            if !others.any(|other| probed_port(other, "livenessProbe") == Some(PROBER_PORT)) {
                found.push("serves the liveness of nobody");
            }
            return found;
        }
        if probed_port(container, "livenessProbe").is_none() {
            found.push("no liveness probe that asks one of its ports");
        }
        let is_driver = text(container, "image").contains("/rds-csi");
        if is_driver && container["readinessProbe"]["httpGet"]["path"] != "/readyz" {
            found.push("its readiness is not asked");
        }
        found
    })
}

pub(super) fn resources(objects: &Objects) -> Vec<String> {
    check(objects, |_, container| {
        let paths = [
            ("resources/requests/cpu", "requests no CPU"),
            ("resources/requests/memory", "requests no memory"),
            ("resources/limits/memory", "has no memory limit"),
        ];
        paths.into_iter().filter(|(path, _)| text(container, path).is_empty()).map(|(_, what)| what).collect()
    })
}

pub(super) fn images(objects: &Objects) -> Vec<String> {
    check(objects, |_, container| {
        let image = text(container, "image");
        let has_digest = image.split_once("@sha256:").is_some_and(|(_, digest)| digest.len() == 64);
        let tag = image.rsplit_once('/').and_then(|(_, name)| name.split_once(':')).map(|(_, tag)| tag);
        let has_tag = tag.is_some_and(|tag| !tag.is_empty() && tag != "latest");
        if has_digest || has_tag { Vec::new() } else { vec!["its image has neither a version nor a digest"] }
    })
}

/// The node plugin and its module loader need the host, and the one step that gives a host's directory to the
/// controllers' user needs root; nothing else does.
pub(super) fn confined(objects: &Objects) -> Vec<String> {
    let mut found = check(objects, |workload, container| {
        let security = &container["securityContext"];
        let name = text(container, "name");
        let needs_host = workload.is_node() && name == "node";
        let needs_root = workload.is_node() || name == "own-directory";
        let adds = list(security, "capabilities/add");
        let is_allowed = |capability: &Value| match name {
            "modprobe" => capability == "SYS_MODULE",
            "own-directory" => {
                ["CHOWN", "FOWNER", "DAC_OVERRIDE"].contains(&capability.as_str().unwrap_or(""))
            }
            _ => false,
        };
        let rules = [
            (needs_host || security["privileged"] != true, "is privileged"),
            (needs_host || security["allowPrivilegeEscalation"] == false, "may gain privileges"),
            (needs_host || list(security, "capabilities/drop") == ["ALL"], "keeps capabilities"),
            (needs_host || adds.iter().all(is_allowed), "adds capabilities"),
            (security["readOnlyRootFilesystem"] == true, "may write to its image"),
            (needs_root || security.get("runAsUser").is_none_or(|user| user != 0), "runs as root"),
            (needs_root || security["runAsNonRoot"] != false, "may run as root"),
        ];
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
    });
    for workload in objects.workloads().into_iter().filter(|workload| !workload.is_node()) {
        let spec = workload.spec();
        let place = crate::objects::name(workload.object);
        let host = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|field| spec[**field] == true);
        found.extend(host.map(|field| format!("{place}: {field}")));
        let security = &spec["securityContext"];
        if security["runAsNonRoot"] != true || security["runAsUser"].as_u64().unwrap_or(0) == 0 {
            found.push(format!("{place}: runs as root"));
        }
        if text(security, "seccompProfile/type") != "RuntimeDefault" {
            found.push(format!("{place}: no seccomp profile"));
        }
        let host_paths = list(spec, "volumes").iter().filter(|volume| volume.get("hostPath").is_some());
        let others = host_paths.filter(|volume| text(volume, "name") != "raft");
        found.extend(others.map(|volume| format!("{place}: mounts {} of the host", text(volume, "name"))));
    }
    found
}

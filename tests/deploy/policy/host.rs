//! What the node plugin needs of the host: docs/node-privileges.md.

use serde_json::Value;

use crate::objects::{Objects, list, name, text};

pub(super) fn node_plugin(objects: &Objects) -> Vec<String> {
    let sets: Vec<_> = objects.workloads().into_iter().filter(|workload| workload.is_node()).collect();
    if sets.is_empty() {
        return vec!["there is no node plugin".to_owned()];
    }
    let mut found = Vec::new();
    for set in sets {
        let spec = set.spec();
        let plugin = list(spec, "containers").iter().find(|container| text(container, "name") == "node");
        let plugin = plugin.unwrap_or(&Value::Null);
        let host_path = |volume: &str| {
            let volume = list(spec, "volumes").iter().find(|known| text(known, "name") == volume);
            volume.map(|volume| text(volume, "hostPath/path")).unwrap_or_default()
        };
        let mount = |path: &str| {
            let mounts = list(plugin, "volumeMounts").iter();
            mounts.into_iter().find(|mount| !path.is_empty() && host_path(text(mount, "name")) == path)
        };
        let same_path = |path: &str| mount(path).is_some_and(|mount| text(mount, "mountPath") == path);
        let settings = kubelet_directory(objects);
        let kubelet = settings.as_str();
        let rules = [
            (spec["hostNetwork"] == true, "connections go with the pod's network"),
            (text(spec, "dnsPolicy") == "ClusterFirstWithHostNet", "controllers' names do not resolve"),
            (spec["hostPID"] == true, "who holds a device is not seen"),
            (text(spec, "priorityClassName") == "system-node-critical", "is not node-critical"),
            (plugin["securityContext"]["privileged"] == true, "may not mount"),
            (same_path("/dev"), "devices do not show"),
            (same_path("/sys"), "devices are not found"),
            (same_path("/etc/machine-id"), "the host has no name"),
            (same_path(kubelet), "kubelet's directory is elsewhere"),
            (
                mount(kubelet).is_some_and(|mount| text(mount, "mountPropagation") == "Bidirectional"),
                "mounts do not propagate",
            ),
            (
                list(spec, "tolerations").iter().any(|toleration| {
                    text(toleration, "operator") == "Exists" && toleration.get("key").is_none()
                }),
                "does not run on every node",
            ),
        ];
        let broken = rules.into_iter().filter(|(holds, _)| !holds);
        found.extend(broken.map(|(_, what)| format!("{}: {what}", name(set.object))));
    }
    found
}

/// kubelet's directory, as the plugin's settings say.
fn kubelet_directory(objects: &Objects) -> String {
    let settings = objects.settings("rds-csi-node", "node.toml");
    let line = settings.lines().find_map(|line| line.strip_prefix("kubelet_directory = "));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

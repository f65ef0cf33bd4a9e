//! `[hotplug]`: the admission webhook that keeps KubeVirt's hotplugged volumes in place.

use std::net::SocketAddr;
use std::time::Duration;

use observer::WebhookSettings;
use observer::hotplug::{Settings, WAITING_READY_LIMIT};
use schemars::JsonSchema;
use serde::Deserialize;

/// The longest hold that may be set, in seconds: a day.
const MOST_HOLD_SECONDS: u32 = 86_400;
/// The longest name of a namespace, in bytes.
const NAMESPACE_BYTES: usize = 63;

/// The admission webhook that keeps KubeVirt's hotplugged volumes in place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HotplugConfig {
    /// Where the API server asks, over HTTPS with the certificate of `[tls]`.
    pub listen: SocketAddr,
    /// Whether an attachment pod is kept until all hotplugged volumes are Ready for the pod that replaces it, for two
    /// minutes at most.
    pub strict: bool,
    /// The longest hold: for how long an attachment pod's deletion is denied, in seconds, counted from its first denial.
    /// Holds that begin anew, as the VM's volumes were changed meanwhile, last four times that in all.
    pub max_hold_seconds: u32,
    /// The namespace of KubeVirt's controller: only its deletions are judged.
    pub kubevirt_namespace: String,
    /// Whether new attachment pods are made to expose every volume of this driver that they list.
    pub mutate: bool,
}

impl Default for HotplugConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 9443)),
            strict: false,
            max_hold_seconds: 600,
            kubevirt_namespace: "kubevirt".to_owned(),
            mutate: true,
        }
    }
}

impl HotplugConfig {
    pub(super) fn mistakes(&self, kubernetes: bool, taken: &[SocketAddr]) -> Vec<String> {
        let mut found = Vec::new();
        if !kubernetes {
            found.push("hotplug: needs kubernetes.enabled, to see pods and virtual machines".to_owned());
        }
        if self.listen.port() != 0 && taken.iter().any(|other| other.port() == self.listen.port()) {
            found.push(format!("hotplug.listen: port {} is used by another setting", self.listen.port()));
        }
        if !(1..=MOST_HOLD_SECONDS).contains(&self.max_hold_seconds) {
            found.push(format!(
                "hotplug.max_hold_seconds: {} is not between 1 and {MOST_HOLD_SECONDS}",
                self.max_hold_seconds
            ));
        }
        if !is_namespace(&self.kubevirt_namespace) {
            found.push(format!(
                "hotplug.kubevirt_namespace: {:?} is no name of a namespace",
                self.kubevirt_namespace
            ));
        }
        found
    }

    /// The same for the webhook.
    pub(crate) fn settings(&self) -> WebhookSettings {
        WebhookSettings {
            guard: Settings {
                strict: self.strict,
                max_hold: Duration::from_secs(u64::from(self.max_hold_seconds)),
                waiting_ready_limit: WAITING_READY_LIMIT,
            },
            kubevirt_namespace: self.kubevirt_namespace.clone(),
            mutate: self.mutate,
        }
    }
}

/// Whether it is a DNS label, as names of namespaces are.
fn is_namespace(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAMESPACE_BYTES).contains(&name.len())
        && name.bytes().all(is_fine)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_its_own_and_the_defaults_are_fine() {
        let fine = HotplugConfig::default();
        assert_eq!(fine.mistakes(true, &[SocketAddr::from(([0, 0, 0, 0], 9809))]), Vec::<String>::new());
        let found = fine.mistakes(true, &[SocketAddr::from(([127, 0, 0, 1], 9443))]);
        assert!(found.iter().any(|mistake| mistake.contains("port 9443")), "{found:?}");
    }

    #[test]
    fn a_namespace_is_a_dns_label() {
        for fine in ["kubevirt", "kubevirt-2", "a"] {
            assert!(is_namespace(fine), "{fine}");
        }
        for wrong in ["", "-a", "a-", "A", "a.b", "a b", &"a".repeat(64)] {
            assert!(!is_namespace(wrong), "{wrong}");
        }
    }
}

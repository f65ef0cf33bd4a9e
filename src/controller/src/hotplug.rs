//! The hotplug webhook of this replica: what it knows, and who counts what it does.

use observer::{Happening, Webhook};

use crate::config::HotplugConfig;
use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;

/// The webhook as the settings want it.
pub(crate) fn webhook(config: &HotplugConfig, kubernetes: &Kubernetes, metrics: &Metrics) -> Webhook {
    let counted = metrics.hotplug.clone();
    let tell = move |happening| match happening {
        Happening::Decided(reason) => counted.decided(reason.name()),
        Happening::Released(held) => counted.released(held),
        Happening::Mutated => counted.mutated(),
    };
    Webhook::new(
        kubernetes.observer.clone(),
        kubernetes.events.clone(),
        kubernetes.client.clone(),
        config.settings(),
        tell,
    )
}

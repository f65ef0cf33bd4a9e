//! The hotplug webhook of this replica: what it is made of, and who counts what it does.

use observer::{Happening, HttpsError, ServerCertificate, Webhook};

use crate::config::{HotplugConfig, Tls};
use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;

/// The webhook as the settings want it, and the certificate that it serves with.
pub(crate) fn webhook(
    config: &HotplugConfig,
    tls: &Tls,
    kubernetes: &Kubernetes,
    metrics: &Metrics,
) -> Result<(Webhook, ServerCertificate), HttpsError> {
    let certificate = ServerCertificate::read(tls.cert.clone(), tls.key.clone())?;
    let counted = metrics.hotplug.clone();
    let tell = move |happening| match happening {
        Happening::Decided(reason) => counted.decided(reason.name()),
        Happening::Released(held) => counted.released(held),
        Happening::Mutated => counted.mutated(),
    };
    let webhook = Webhook::new(
        kubernetes.observer.clone(),
        kubernetes.events.clone(),
        kubernetes.client.clone(),
        config.settings(),
        tell,
    );
    Ok((webhook, certificate))
}

//! Kubernetes, as far as the controller asks it: watches, and events to people.
//!
//! Without it, all questions are answered "unknown", and events go nowhere; the driver works all the same.

use observer::{Client, ConnectError, EventOutcome, Events, Observer, Settings};
use tokio_util::sync::CancellationToken;

use crate::config::KubernetesConfig;
use crate::metrics::Metrics;

/// What Kubernetes says, and what it is told. Clones share it.
#[derive(Clone)]
pub(crate) struct Kubernetes {
    pub(crate) observer: Observer,
    pub(crate) events: Events,
}

impl Kubernetes {
    /// Begins to watch until `stop`, if the settings say so.
    pub(crate) fn start(
        config: &KubernetesConfig,
        metrics: Metrics,
        stop: &CancellationToken,
    ) -> Result<Self, ConnectError> {
        let Some(client) = client(config)? else {
            tracing::info!("Kubernetes is not watched: VMs and pods are unknown, and no events are posted");
            return Ok(Self { observer: Observer::none(), events: Events::none() });
        };
        let observer = Observer::start(&client, &Settings::of_driver(csi::DRIVER_NAME), stop);
        let count = move |reason: observer::EventReason, outcome| match outcome {
            EventOutcome::Posted => metrics.event_posted(reason.name()),
            EventOutcome::AlreadyThere | EventOutcome::Failed | EventOutcome::Dropped => {}
        };
        let events = Events::start(client, csi::DRIVER_NAME, stop.clone(), count);
        Ok(Self { observer, events })
    }
}

fn client(config: &KubernetesConfig) -> Result<Option<Client>, ConnectError> {
    match &config.simulated_api_server {
        _ if !config.enabled => Ok(None),
        Some(url) => observer::connect_as_nobody(url).map(Some),
        None => observer::connect().map(Some),
    }
}

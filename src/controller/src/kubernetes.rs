//! Kubernetes, as far as the controller asks it: watches, events to people, and whose tokens nodes show.
//!
//! Without it, all questions are answered "unknown", and events go nowhere; the driver works all the same.

use observer::{Client, ConnectError, EventOutcome, Events, Observer, Settings};
use tokio_util::sync::CancellationToken;

use crate::config::KubernetesConfig;
use crate::metrics::Metrics;
use crate::node_callers::NodeCallers;

/// What Kubernetes says, and what it is told. Clones share it.
#[derive(Clone)]
pub(crate) struct Kubernetes {
    pub(crate) observer: Observer,
    pub(crate) events: Events,
    pub(crate) node_callers: NodeCallers,
    /// `None`: there is no Kubernetes.
    pub(crate) client: Option<Client>,
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
            let node_callers = NodeCallers::default();
            return Ok(Self {
                observer: Observer::none(),
                events: Events::none(),
                node_callers,
                client: None,
            });
        };
        let node_callers = match &config.node_tokens {
            Some(tokens) => NodeCallers::with_tokens(client.clone(), tokens),
            None => NodeCallers::default(),
        };
        let observer = Observer::start(&client, &Settings::of_driver(csi::DRIVER_NAME), stop);
        let count = move |reason: observer::EventReason, outcome| match outcome {
            EventOutcome::Posted => metrics.event_posted(reason.name()),
            EventOutcome::AlreadyThere | EventOutcome::Failed | EventOutcome::Dropped => {}
        };
        let events = Events::start(client.clone(), csi::DRIVER_NAME, stop.clone(), count);
        Ok(Self { observer, events, node_callers, client: Some(client) })
    }
}

fn client(config: &KubernetesConfig) -> Result<Option<Client>, ConnectError> {
    match &config.simulated_api_server {
        _ if !config.enabled => Ok(None),
        Some(url) => observer::connect_as_nobody(url).map(Some),
        None => observer::connect().map(Some),
    }
}

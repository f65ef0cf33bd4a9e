//! The controller: one replica of the ledger, CSI's Controller service on a local socket, and, while it leads, the
//! executor that carries out what the ledger asks for, and the nodes' sessions.
//!
//! Life cycle of [`run`]: open the replica, serve peers, nodes, operators and people, serve CSI; at shutdown hand
//! leadership over first, then stop serving. A fatal storage error ends the process.

mod chronicle;
mod config;
mod deadline;
mod evidence;
mod executor;
mod http;
mod kubernetes;
mod metrics;
mod node_callers;
mod node_gateway;
mod operator;
mod reaper;
mod run;
mod service;
mod sessions;

pub use config::{ControllerConfig, KubernetesConfig, Peer, Tls, VolumeDefaults};
pub use run::{RunError, run};

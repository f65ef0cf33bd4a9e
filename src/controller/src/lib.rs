//! The controller: one replica of the ledger, CSI's Controller service on a local socket, and, while it leads, the
//! executor that carries out what the ledger asks for, and the nodes' sessions.
//!
//! Life cycle of [`run`]: open the replica, serve peers, nodes, operators and people, serve CSI; at shutdown hand
//! leadership over first, then stop serving. A fatal storage error ends the process.

mod chronicle;
mod config;
mod deadline;
mod evidence;
#[allow(missing_docs, reason = "reachable for the simulator of the chaos suite only")]
mod executor;
mod hand_over;
mod hotplug;
mod http;
mod kubernetes;
mod metrics;
mod node_callers;
mod node_gateway;
mod operator;
mod orphans;
#[allow(missing_docs, reason = "reachable for the simulator of the chaos suite only")]
mod reaper;
mod recovery;
mod run;
mod service;
#[allow(missing_docs, reason = "reachable for the simulator of the chaos suite only")]
mod sessions;

/// What decides on the leader, without IO or a clock: for the simulator of the chaos suite.
#[doc(hidden)]
pub mod cores {
    pub mod executor {
        pub use crate::executor::{Action, Effect, Event, Executor, Hand, Key, Outcome, key_of};
    }
    pub mod reaper {
        pub use crate::reaper::{
            About, Answer, Effect, Event, Evidence, KubeVirt, Reaper, Report, Seen, Side, Sight, Standing,
            View,
        };
    }
    pub mod sessions {
        pub use crate::sessions::core::{Effect, Event, NOT_ATTACHED, Note, Refused, SessionId, Sessions};
        pub use crate::sessions::{Look, Report, Sight, Usage};
    }
}

pub use config::{
    ControllerConfig, HotplugConfig, KubernetesConfig, OrphansConfig, Peer, Tls, VolumeDefaults,
};
pub use hand_over::hand_over;
pub use run::{RunError, run};

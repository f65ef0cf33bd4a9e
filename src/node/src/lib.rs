//! The node plugin: what happens to volumes on one node.
//!
//! It serves CSI's Node service to kubelet, connects volumes over a fabric and mounts them.
//! It holds no state: what is connected and mounted is read from the system whenever it matters. Before it stages
//! a volume it asks the controllers whether its attachment stands, and when the volume is unstaged, or could not be
//! staged, it tells them that it is not connected; whatever they do not decide is UNAVAILABLE, and kubelet tries again.
//! What kubelet will not clear away is put right regularly (`reconcile`), and the leader of the controllers is told
//! at every moment what there is (`session`).
//!
//! Life cycle: [`run`] takes a [`NodeConfig`], waits for a predecessor's operations to end, registers the node with
//! the controllers however long that takes, serves until it is told to stop, and lets running operations end.

mod block_targets;
mod condition;
mod config;
mod credentials;
mod fabric;
mod fake_machine;
mod gateway;
mod http;
mod identity;
mod in_use;
mod ledger;
mod line;
mod measure;
mod metrics;
mod mounts;
mod needed;
mod operations;
mod outcome;
mod own_thread;
mod publish;
mod reconcile;
mod run;
mod service;
mod session;
mod stage;
mod stale;
mod steps;
mod sysfs;
mod tool;
mod under_way;
mod undo;
mod volume_limit;
mod volumes;

pub use config::{Deadlines, FabricConfig, NodeConfig, TlsFiles};
pub use gateway::LineError;
pub use line::connect_lazily;
pub use run::{RunError, run};
pub use steps::Step;

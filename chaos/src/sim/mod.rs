//! The seeded simulator: a whole cluster in one thread, in simulated time.
//!
//! openraft itself runs in it, and the ledger's `apply` and `plan`, the executor, the sessions, the reaper and the
//! ledger's clock: the same code as in production. Simulated are the machine room (`runtime`), the network, the disks,
//! the appliance, the nodes and the orchestrator; what is around the cores in production (`src/replica`, the shells of
//! `src/controller`, the node plugin) is written again here, file by file after its model.
//!
//! A seed decides everything, so it reproduces its run. Not simulated: an operator's changes of the membership, TLS,
//! Kubernetes beyond a node's standing, file systems.

mod appliance;
mod client;
mod command;
mod disk;
mod elsewhere;
mod faults;
mod link;
mod machine;
mod maker;
mod nemesis;
mod network;
mod node;
mod places;
mod play;
mod plugin;
mod reader;
mod recorder;
mod replica;
mod rng;
mod runtime;
mod totals;
mod types;
mod world;

pub use command::{SimArguments, judge, listed};
pub use play::{Flaw, Played, play, play_with};
pub use recorder::Breach;

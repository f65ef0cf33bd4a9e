//! The program `rds-csi`: everything that it does, so that tests can do it too.
//!
//! Life cycle of the program: arguments are parsed ([`Arguments`]), logs started ([`logging`]), then one of
//! - `controller`, `node`: the driver's two halves, and `simulator`, the simulated appliance ([`services`])
//! - `dev`: a whole cluster on this machine, made of the other three as real processes ([`dev`])
//! - `ctl`: questions and orders of the person on call ([`ctl`])
//!
//! - `hand-over`, `certificates`: what hooks and Jobs of a deployment run ([`services`], [`cluster_certificates`])
//!
//! runs until it is done or a signal ends it ([`termination`]). A [`Failure`] says with which status.

mod arguments;
pub mod bench;
pub mod certificates;
pub mod cluster_certificates;
pub mod ctl;
pub mod dev;
mod failure;
pub mod http;
pub mod logging;
mod open_files;
pub mod services;
mod table;
pub mod termination;
mod units;

pub use arguments::{
    Arguments, ControllerArguments, NodeArguments, Program, ReplicaArguments, ServiceArguments,
};
pub use failure::Failure;

//! Black-box tests of the whole driver, in the folders beside this one; here is what they share.
//!
//! - [`Lab`]: a cluster of real processes on this machine, one for each test
//! - [`Csi`]: a replica's CSI services
//! - [`requests`]: CSI requests, and patience as the sidecars have it
//! - [`appliance`]: what the simulated appliance holds, and whether the ledger agrees
//! - [`tools`]: the programs under test

pub mod appliance;
mod csi;
mod lab;
pub mod requests;
pub mod tools;

pub use csi::Csi;
pub use lab::{Lab, tls_channel};

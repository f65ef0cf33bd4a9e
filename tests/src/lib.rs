//! Black-box tests of the whole driver, in the folders beside this one; here is what they share.
//!
//! - [`Lab`]: a cluster of real processes on this machine, one for each test
//! - [`Csi`]: a replica's CSI services
//! - [`requests`]: CSI requests, and patience as the sidecars have it
//! - [`appliance`]: what the simulated appliance holds, and whether the ledger agrees
//! - [`kubernetes`]: a simulated API server, and a cluster's objects
//! - [`sanity`]: csi-sanity, and what its report says
//! - [`tools`]: the programs under test
//! - [`vm`]: virtual machines with the driver in them

pub mod appliance;
mod csi;
pub mod kubernetes;
mod lab;
pub mod requests;
pub mod sanity;
pub mod tools;
pub mod vm;

pub use csi::Csi;
pub use lab::{Lab, SERVER_NAME, tls_channel};

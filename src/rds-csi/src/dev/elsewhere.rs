//! An appliance that is not one of the cluster's processes, such as a simulated one in a virtual machine.

use std::net::{IpAddr, SocketAddr};

/// Where an appliance is that runs elsewhere. It accepts the cluster's key (`ssh/client.pub`) and has its host key
/// (`ssh/host`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplianceElsewhere {
    /// Where it serves SSH, as controllers reach it.
    pub ssh: SocketAddr,
    /// Where it exports, as nodes reach it.
    pub nvme_address: IpAddr,
}

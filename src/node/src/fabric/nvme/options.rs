//! What the kernel is told when it connects: one line of options for `/dev/nvme-fabrics`.
//!
//! All of them are always given, as the kernel's own defaults are not made for volumes. Every value is a number, an IP
//! address, a UUID or an NQN, so none can bring a comma in.

use std::net::IpAddr;

use state_machine::Nqn;
use uuid::Uuid;

use crate::fabric::Connect;

/// Seconds until the kernel gives a lost NVMe controller up: never, as what it has given up it does not connect again,
/// and an appliance may restart.
const DEFAULT_CTRL_LOSS_TMO_SECONDS: i32 = -1;
/// Seconds until I/O to a lost NVMe controller fails: never before the NVMe controller is given up, as a file system
/// or a guest does not survive failed I/O. -1 is how the kernel spells "off".
const DEFAULT_FAST_IO_FAIL_TMO_SECONDS: i32 = -1;
/// Seconds between two tries to connect a lost NVMe controller again.
const DEFAULT_RECONNECT_DELAY_SECONDS: u32 = 5;
/// Seconds of the keep-alive timer: how soon a silent loss is noticed.
const DEFAULT_KEEP_ALIVE_TMO_SECONDS: u32 = 5;
/// I/O queues asked for; the kernel makes no more than it has CPUs, and the appliance may grant fewer. A bound, as each
/// queue is a connection of its own, and a node has many volumes.
pub(crate) const DEFAULT_NR_IO_QUEUES: u32 = 8;

/// The options for one volume, as the host of this name and id.
pub(super) fn options(connect: &Connect, address: IpAddr, host_nqn: &Nqn, host_id: Uuid) -> String {
    format!(
        "transport=tcp,traddr={address},trsvcid={},nqn={},hostnqn={host_nqn},hostid={host_id},nr_io_queues={},\
         reconnect_delay={},ctrl_loss_tmo={},fast_io_fail_tmo={},keep_alive_tmo={}",
        connect.port,
        connect.nqn,
        connect.nr_io_queues.unwrap_or(DEFAULT_NR_IO_QUEUES),
        connect.reconnect_delay_seconds.unwrap_or(DEFAULT_RECONNECT_DELAY_SECONDS),
        connect.ctrl_loss_tmo_seconds.unwrap_or(DEFAULT_CTRL_LOSS_TMO_SECONDS),
        connect.fast_io_fail_tmo_seconds.unwrap_or(DEFAULT_FAST_IO_FAIL_TMO_SECONDS),
        connect.keep_alive_tmo_seconds.unwrap_or(DEFAULT_KEEP_ALIVE_TMO_SECONDS),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use state_machine::{HostAddress, VolumeId};

    #[test]
    fn all_options_are_given() {
        let host = Nqn::parse("nqn.2014-08.org.example:node-a").unwrap();
        let id = Uuid::from_u128(7);
        let connect = Connect {
            volume: VolumeId::parse("pvc-1").unwrap(),
            nqn: Nqn::parse("nqn.2000-02.com.mikrotik:pvc-1").unwrap(),
            address: HostAddress::parse("appliance").unwrap(),
            port: 4420,
            volume_path: None,
            ctrl_loss_tmo_seconds: None,
            reconnect_delay_seconds: None,
            keep_alive_tmo_seconds: None,
            fast_io_fail_tmo_seconds: None,
            nr_io_queues: None,
        };
        let common = |address| {
            format!(
                "transport=tcp,traddr={address},trsvcid=4420,nqn=nqn.2000-02.com.mikrotik:pvc-1,\
                 hostnqn=nqn.2014-08.org.example:node-a,hostid=00000000-0000-0000-0000-000000000007,"
            )
        };
        let defaults =
            "nr_io_queues=8,reconnect_delay=5,ctrl_loss_tmo=-1,fast_io_fail_tmo=-1,keep_alive_tmo=5";
        let given = options(&connect, "10.0.0.1".parse().unwrap(), &host, id);
        assert_eq!(given, common("10.0.0.1") + defaults);
        let connect = Connect {
            ctrl_loss_tmo_seconds: Some(600),
            reconnect_delay_seconds: Some(2),
            keep_alive_tmo_seconds: Some(9),
            fast_io_fail_tmo_seconds: Some(30),
            nr_io_queues: Some(1),
            ..connect
        };
        let given = options(&connect, "fd00::1".parse().unwrap(), &host, id);
        let asked = "nr_io_queues=1,reconnect_delay=2,ctrl_loss_tmo=600,fast_io_fail_tmo=30,keep_alive_tmo=9";
        assert_eq!(given, common("fd00::1") + asked);
    }
}

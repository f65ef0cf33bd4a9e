//! What runs where, for whoever started a cluster.

use super::cluster::Cluster;
use super::layout::Fabric;
use crate::table::Table;

/// The table and what to try next.
pub(crate) fn of(cluster: &mut Cluster) -> String {
    let mut table = Table::new(["ROLE", "NAME", "PID", "SERVES", "METRICS", "CSI SOCKET", "LOG"]);
    for [role, name, serves, metrics, socket] in places(cluster) {
        let pid = cluster.pid(&name).map(|pid| pid.to_string()).unwrap_or_default();
        let log = cluster.log_path(&name).display().to_string();
        table.row([role, name, pid, serves, metrics, socket, log]);
    }
    let fabric = match cluster.layout().fabric {
        Fabric::Fake => "Nodes run on the fake fabric: plain files stand in for devices and mounts.",
        Fabric::Loop => "Nodes run on the loop fabric: loop devices over the simulated appliance's files.",
    };
    format!(
        "{}\nThe appliance is simulated. {fabric}\n\nTry, in another terminal:\n  \
         rds-csi ctl --config {} status\n\nCtrl-C ends everything.\n",
        table.render(),
        cluster.operator_access().display(),
    )
}

fn places(cluster: &Cluster) -> Vec<[String; 5]> {
    let layout = cluster.layout();
    let socket = |name: &str| layout.csi_socket(name).display().to_string();
    let simulator = [
        "simulated appliance".to_owned(),
        cluster.simulator().to_owned(),
        format!("ssh {}", layout.simulator_address()),
        String::new(),
        String::new(),
    ];
    let controllers = layout.controllers.iter().map(|place| {
        [
            "controller".to_owned(),
            place.name.clone(),
            format!("grpc {}", place.address()),
            place.metrics_address().to_string(),
            socket(&place.name),
        ]
    });
    let nodes = layout.nodes.iter().map(|place| {
        [
            "node".to_owned(),
            place.name.clone(),
            String::new(),
            place.metrics_address().to_string(),
            socket(&place.name),
        ]
    });
    std::iter::once(simulator).chain(controllers).chain(nodes).collect()
}

//! kubelet's calls to a node plugin, for a volume that a pod there uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::csi::v1::node_client::NodeClient;
use rds_csi::dev::requests::{stage, unstage, within};
use serde_json::Value;
use tests::requests::insist;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, DRIVER};

/// How long a call may take, in seconds.
const CALL_S: u64 = 20;

/// The plugin on the node, through the socket where kubelet finds it.
pub(crate) fn client(cluster: &Cluster, node: &str) -> Result<NodeClient<Channel>> {
    let socket = cluster.kubelet.host(node).join(format!("var/lib/kubelet/plugins/{DRIVER}/csi.sock"));
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    Ok(NodeClient::new(endpoint.context("the plugin's socket")?.connect_lazy()))
}

/// Stages the RWX block volume, with what the attacher wrote into the VolumeAttachment and the provisioner into the PV.
pub(crate) async fn stage_on(cluster: &Cluster, node: &str, volume: &str, attachment: &Value) -> Result<()> {
    let context: BTreeMap<String, String> =
        serde_json::from_value(attachment["status"]["attachmentMetadata"].clone()).unwrap_or_default();
    let found = cluster.api.get(&format!("/api/v1/persistentvolumes/{volume}")).await?;
    let attributes: BTreeMap<String, String> =
        serde_json::from_value(found["spec"]["csi"]["volumeAttributes"].clone()).unwrap_or_default();
    let handle = found["spec"]["csi"]["volumeHandle"].as_str().context("no volumeHandle")?;
    let staging = staging(volume);
    fs::create_dir_all(cluster.kubelet.host(node).join(staging.strip_prefix("/")?))?;
    let client = client(cluster, node)?;
    insist(&format!("stage {volume} on {node}"), || {
        let (mut client, request) = (client.clone(), stage(handle, &staging, &context, &attributes));
        async move { client.node_stage_volume(within(Duration::from_secs(CALL_S), request)).await }
    })
    .await?;
    Ok(())
}

/// Takes the volume from the node.
pub(crate) async fn unstage_from(cluster: &Cluster, node: &str, volume: &str) -> Result<()> {
    let (client, staging) = (client(cluster, node)?, staging(volume));
    insist(&format!("unstage {volume} from {node}"), || {
        let (mut client, request) = (client.clone(), unstage(volume, &staging));
        async move { client.node_unstage_volume(within(Duration::from_secs(CALL_S), request)).await }
    })
    .await?;
    Ok(())
}

/// Where kubelet has a block volume staged, as the plugin sees it.
fn staging(volume: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/staging/{volume}"))
}

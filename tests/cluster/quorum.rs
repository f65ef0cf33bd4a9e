//! One replica of three is left: it decides nothing, says so in time, and lives.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::csi::v1::{ControllerGetVolumeRequest, ListVolumesRequest, ProbeRequest};
use proto::node::v1::node_gateway_client::NodeGatewayClient;
use proto::node::v1::{AttachmentPhase, DescribeVolumesRequest};
use rds_csi::certificates::{Authority, Owner};
use tests::requests::{
    MIB, create, delete, expect_unavailable, insist, publish, unpublish, volume_id, within,
};
use tests::{Lab, tls_channel};

/// What each caller gives the driver, in milliseconds.
const LIMIT_MS: u64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_callers_are_told_in_time() -> Result<()> {
    Lab::tell(async |lab| {
        let limit = Duration::from_millis(LIMIT_MS);
        let survivor = lab.follower_name().await?;
        let csi = lab.csi(&survivor)?;
        let id = volume_id(insist("create", || csi.create(create("kept", MIB))).await?);
        insist("publish", || csi.publish(publish(&id, "node-a"))).await?;
        let authority = Authority::open_or_create(&lab.certificates())?;
        let files = authority.files(&Owner::Node("node-a".to_owned()), "node-a")?;
        let channel = tls_channel(&lab.address(&survivor)?, &authority.certificate(), Some(&files))?;
        let mut gateway = NodeGatewayClient::new(channel);
        let describe = DescribeVolumesRequest {
            node_id: "node-a".to_owned(),
            volume_ids: vec![id.clone(), "pvc-unknown".to_owned()],
        };
        let described = gateway.describe_volumes(within(limit, describe.clone())).await?.into_inner();
        let phases: Vec<_> = described
            .volumes
            .iter()
            .map(|volume| (volume.known, volume.attachment.map(|attachment| attachment.phase())))
            .collect();
        ensure!(phases == [(true, Some(AttachmentPhase::Granted)), (false, None)], "{described:?}");

        let others: Vec<_> = lab.controllers().into_iter().filter(|name| *name != survivor).collect();
        for name in &others {
            lab.kill(name)?;
        }
        let begun = Instant::now();
        let get = ControllerGetVolumeRequest { volume_id: id.clone() };
        let answers = tokio::join!(
            csi.create(within(limit, create("new", MIB))),
            csi.delete(within(limit, delete(&id))),
            csi.publish(within(limit, publish(&id, "node-b"))),
            csi.unpublish(within(limit, unpublish(&id, "node-a"))),
            csi.get(within(limit, get)),
            csi.list(within(limit, ListVolumesRequest::default())),
            gateway.describe_volumes(within(limit, describe)),
        );
        let took = begun.elapsed();
        expect_unavailable("create", answers.0)?;
        expect_unavailable("delete", answers.1)?;
        expect_unavailable("publish", answers.2)?;
        expect_unavailable("unpublish", answers.3)?;
        expect_unavailable("get", answers.4)?;
        expect_unavailable("list", answers.5)?;
        expect_unavailable("describe", answers.6)?;
        ensure!(took < limit, "answered only after {took:?}");
        csi.probe(within(limit, ProbeRequest {})).await?;

        for name in &others {
            lab.start_again(name).await?;
        }
        let kept = insist("get", || csi.get(ControllerGetVolumeRequest { volume_id: id.clone() })).await?;
        let nodes = kept.status.map(|status| status.published_node_ids).unwrap_or_default();
        ensure!(nodes == ["node-a"], "published to {nodes:?}; what was refused must not have happened");
        Ok(())
    })
    .await
}

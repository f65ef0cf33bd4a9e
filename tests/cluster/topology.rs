//! An appliance that only a part of the cluster reaches, and what a class says, from the request to the answer.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::plugin_capability::{Service, Type, service};
use proto::csi::v1::{
    ControllerGetVolumeRequest, GetCapacityRequest, GetPluginCapabilitiesRequest, ListVolumesRequest,
    Topology, TopologyRequirement,
};
use tests::Lab;
use tests::requests::{MIB, create, insist};
use tonic::Code;

const ZONE: &str = "topology.kubernetes.io/zone";

fn zone(name: &str) -> Topology {
    Topology { segments: [(ZONE.to_owned(), name.to_owned())].into() }
}

/// Restarts `name` with an appliance that is in the zone `a`.
async fn move_to_zone_a(lab: &mut Lab, name: &str) -> Result<()> {
    lab.terminate(name).await?;
    let settings = OpenOptions::new().append(true).open(lab.config_path(name));
    writeln!(settings.context("open the settings")?, "\n[topology]\n{ZONE:?} = \"a\"")?;
    lab.start_again(name).await
}

async fn has_topology(lab: &Lab, name: &str) -> Result<bool> {
    let answer = lab.csi_identity(name)?.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?;
    let constraints = Type::Service(Service { r#type: service::Type::VolumeAccessibilityConstraints.into() });
    Ok(answer.into_inner().capabilities.iter().any(|capability| capability.r#type == Some(constraints)))
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_where_the_appliance_is() -> Result<()> {
    Lab::tell(async |lab| {
        let name = lab.follower_name().await?;
        ensure!(!has_topology(lab, &name).await?, "an appliance without a place has constraints");
        move_to_zone_a(lab, &name).await?;
        ensure!(has_topology(lab, &name).await?, "an appliance with a place has no constraints");
        let csi = lab.csi(&name)?;

        let request = |zones: &[&str]| {
            let mut request = create("somewhere", MIB);
            let requisite = zones.iter().map(|name| zone(name)).collect();
            request.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: vec![] });
            request
        };
        let refused = csi.create(request(&["b", "c"])).await.err().context("made out of reach")?;
        ensure!(refused.code() == Code::ResourceExhausted, "{refused}");
        ensure!(lab.ledger().await?.is_empty(), "a refused volume is in the ledger");

        let created = insist("create", || csi.create(request(&["b", "a"]))).await?;
        let volume = created.volume.context("no volume")?;
        let id = volume.volume_id.clone();
        ensure!(volume.accessible_topology == [zone("a")], "{volume:?}");
        let got = insist("get", || csi.get(ControllerGetVolumeRequest { volume_id: id.clone() })).await?;
        ensure!(got.volume.is_some_and(|got| got == volume), "it is shown otherwise than it was made");
        let listed = insist("list", || csi.list(ListVolumesRequest::default())).await?;
        ensure!(listed.entries.iter().all(|entry| entry.volume.as_ref() == Some(&volume)), "{listed:?}");

        let capacity = async |place: Option<Topology>| {
            let request = GetCapacityRequest { accessible_topology: place, ..Default::default() };
            insist("capacity", || csi.capacity(request.clone())).await.map(|answer| answer.available_capacity)
        };
        ensure!(capacity(None).await? > 0, "nothing is free");
        ensure!(capacity(Some(zone("a"))).await? > 0, "nothing is free where the appliance is");
        ensure!(capacity(Some(zone("b"))).await? == 0, "something is free where the appliance is not");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_class_says_is_kept_and_told() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.follower_name().await?)?;
        let said = [("fastIoFailTmo", "30"), ("nrIoQueues", "4"), ("mkfsOptions", "-m 0 -E nodiscard")];
        let mut request = create("with-a-class", MIB);
        request.parameters = said.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let volume = insist("create", || csi.create(request.clone())).await?.volume.context("no volume")?;
        let shown = lab.ledger().await?;
        let shown = shown.first().context("it is not in the ledger")?;
        for (key, value) in said {
            ensure!(volume.volume_context.get(key).is_some_and(|found| found == value), "{volume:?}");
            ensure!(shown.parameters.get(key).is_some_and(|found| found == value), "{shown:?}");
        }

        request.parameters.insert("mkfsOptions".to_owned(), "-m 0 -F".to_owned());
        let refused = csi.create(request.clone()).await.err().context("mkfs was to be forced")?;
        ensure!(refused.code() == Code::InvalidArgument, "{refused}");
        ensure!(refused.message().contains("parameters[mkfsOptions]: \"-F\" is not an option"), "{refused}");
        request.parameters.remove("mkfsOptions");
        let other = csi.create(request).await.err().context("another class is the same")?;
        ensure!(other.code() == Code::AlreadyExists, "{other}");
        Ok(())
    })
    .await
}

//! The steps of a live migration: a disk on one node, then on two, then on the other.

use anyhow::Context as _;
use backend::{Backend, Presence};
use proto::csi::v1::CreateVolumeRequest;
use state_machine::{AppliancePath, VolumeId};
use uuid::Uuid;

use super::actors::{Actors, Answer, Disk, SOURCE, TARGET, THIRD, call_limit, course, holders};
use super::timeline::{Step, Stopped, Timeline};
use crate::dev::requests::{self, within};

/// The disk's size, in bytes: 10 GiB.
const SIZE_BYTES: i64 = 10 << 30;

/// A new RWX block volume of a class with these parameters.
pub(crate) async fn create(
    timeline: &mut Timeline,
    actors: &Actors,
    class: &[(&str, &str)],
) -> Result<Disk, Stopped> {
    timeline
        .step("create an RWX block volume of 10 GiB", async |step| {
            let disks_before = actors.disks_on_appliance().await?;
            let name = format!("pvc-{}", Uuid::new_v4());
            let through = first_controller(actors)?;
            let parameters =
                class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let request = CreateVolumeRequest { parameters, ..requests::create(&name, SIZE_BYTES) };
            let request = within(call_limit(), request);
            let answer = Answer(actors.cluster.csi_controller(&through)?.create_volume(request).await);
            step.equal(format!("CreateVolume through {through}"), "OK", answer.words());
            let volume = answer.ok("CreateVolume")?.into_inner().volume.context("no volume in the answer")?;
            step.equal("its id", &name, &volume.volume_id);
            step.equal("its size in bytes", SIZE_BYTES, volume.capacity_bytes);
            step.equal(
                "disks on the simulated appliance",
                disks_before + 1,
                actors.disks_on_appliance().await?,
            );
            Ok(Disk {
                volume: volume.volume_id,
                volume_context: volume.volume_context,
                published: Vec::new(),
                migration: None,
                disks_before,
            })
        })
        .await
}

/// The VM starts on the source.
pub(crate) async fn attach_source(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &mut Disk,
) -> Result<(), Stopped> {
    timeline
        .step("publish, stage and publish on node-a", async |step| {
            let through = first_controller(actors)?;
            attach(step, actors, disk, &through, SOURCE).await?;
            step.equal("migrations", "none", course(&actors.migrations(&through, disk).await?));
            Ok(())
        })
        .await
}

/// The VM's target pod is made ready on the other node.
pub(crate) async fn attach_target(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &mut Disk,
) -> Result<(), Stopped> {
    timeline
        .step("publish, stage and publish on node-b: the migration starts", async |step| {
            let through = first_controller(actors)?;
            attach(step, actors, disk, &through, TARGET).await?;
            let migrations = actors.migrations(&through, disk).await?;
            let id = migrations.first().context("there is no migration")?.id;
            disk.migration = Some(id);
            let expected = format!("{id} from {SOURCE} to {TARGET}: Active");
            step.equal("migrations", expected, course(&migrations));
            Ok(())
        })
        .await
}

async fn attach(
    step: &mut Step,
    actors: &Actors,
    disk: &mut Disk,
    through: &str,
    node: &'static str,
) -> anyhow::Result<()> {
    let answer = actors.publish(through, disk, node).await?;
    step.equal(format!("ControllerPublishVolume to {node} through {through}"), "OK", answer.words());
    let context = answer.ok("ControllerPublishVolume")?;
    let target = actors.bring_to_pod(disk, node, &context).await?;
    step.equal(format!("the pod on {node} sees the disk"), true, target.symlink_metadata().is_ok());
    disk.published.push((node, context));
    Ok(())
}

/// Two nodes are the limit, whoever is asked.
pub(crate) async fn third_node_is_refused(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    controllers: &[String],
) -> Result<(), Stopped> {
    timeline
        .step("publish on node-c: refused, two nodes are the limit", async |step| {
            for through in controllers {
                let answer = actors.publish(through, disk, THIRD).await?;
                let words = answer.words();
                let held = answer.code() == "FAILED_PRECONDITION"
                    && words.contains(SOURCE)
                    && words.contains(TARGET);
                let expected = format!("FAILED_PRECONDITION, naming {SOURCE} and {TARGET}");
                step.check(format!("through {through}"), held, expected, words);
            }
            Ok(())
        })
        .await
}

/// The source pod ends: the migration has succeeded.
pub(crate) async fn source_leaves(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    through: &str,
) -> Result<(), Stopped> {
    timeline
        .step("unpublish, unstage and unpublish on node-a: the migration is completed", async |step| {
            detach(step, actors, disk, through, SOURCE).await?;
            let id = disk.migration.context("there is no migration")?;
            let expected = format!("{id} from {SOURCE} to {TARGET}: success");
            step.equal("migrations", expected, course(&actors.migrations(through, disk).await?));
            let volume = actors.volume(through, disk).await?.ok("GetVolume")?;
            let left: Vec<&str> = volume.attachments.iter().map(|one| one.node_id.as_str()).collect();
            step.equal("who holds the volume", TARGET, left.join(", "));
            Ok(())
        })
        .await
}

pub(crate) async fn detach(
    step: &mut Step,
    actors: &Actors,
    disk: &Disk,
    through: &str,
    node: &str,
) -> anyhow::Result<()> {
    let target = actors.take_from_pod(disk, node).await?;
    step.equal(format!("a pod on {node} sees the disk"), false, target.symlink_metadata().is_ok());
    let answer = actors.unpublish(through, disk, node).await?;
    step.equal(format!("ControllerUnpublishVolume from {node} through {through}"), "OK", answer.words());
    answer.ok("ControllerUnpublishVolume")
}

/// The VM ends and its disk goes; nothing of it is left anywhere.
pub(crate) async fn clean_up(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    through: &str,
) -> Result<(), Stopped> {
    timeline
        .step("unpublish, unstage and unpublish on node-b, delete", async |step| {
            detach(step, actors, disk, through, TARGET).await?;
            let volume = actors.volume(through, disk).await?.ok("GetVolume")?;
            step.equal("who holds the volume", "nobody", holders(&volume));
            let path = volume.parameters.get("volumePath").context("the volume has no volumePath")?;
            let request = within(call_limit(), requests::delete(&disk.volume));
            let answer = Answer(actors.cluster.csi_controller(through)?.delete_volume(request).await);
            step.equal(format!("DeleteVolume through {through}"), "OK", answer.words());
            answer.ok("DeleteVolume")?;
            let answer = actors.volume(through, disk).await?;
            step.equal("the volume in the ledger", "NOT_FOUND", answer.code());
            step.equal(
                "disks on the simulated appliance",
                disk.disks_before,
                actors.disks_on_appliance().await?,
            );
            let (id, path) = (VolumeId::parse(&disk.volume)?, AppliancePath::parse(path)?);
            let presence = actors.appliance.look(&id, &path).await?;
            let is_gone = matches!(presence, Presence::Absent);
            step.check(
                "disk and file on the simulated appliance",
                is_gone,
                "Absent".to_owned(),
                format!("{presence:?}"),
            );
            Ok(())
        })
        .await
}

/// SIGTERM to everybody: each ends by itself.
pub(crate) async fn end_everything(timeline: &mut Timeline, actors: Actors) -> Result<(), Stopped> {
    timeline
        .step("end everything with SIGTERM", async |step| {
            for (name, outcome) in actors.cluster.stop().await {
                let came = match outcome {
                    Ok(status) => status.to_string(),
                    Err(error) => format!("{error:#}"),
                };
                step.equal(name, "exit status: 0", came);
            }
            Ok(())
        })
        .await
}

pub(crate) fn first_controller(actors: &Actors) -> anyhow::Result<String> {
    actors.cluster.controllers().into_iter().next().context("there is no controller")
}

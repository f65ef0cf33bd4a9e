//! The node plugin, or its whole machine, dies.

use anyhow::{Context, Result, bail, ensure};
use node::Step;
use tests::requests::is_passing;
use tests::vm::{NODES, NodeOptions, VmLab};
use tonic::Status;

use super::life_cycle::{expect_checksum, write_noise};
use crate::volume::{Kind, Volume};

/// Steps after which it has to have died over a file system; the others are taken only if they are needed.
const DEATHS_OVER_A_FILE_SYSTEM: &[&str] = &[
    "permitted",
    "connected",
    "probed",
    "formatted",
    "mounted",
    "unmounted",
    "disconnected",
    "forgotten",
    "reported",
];

/// The same over a block volume, which has nothing to probe, format or mount.
const DEATHS_OVER_A_DEVICE: &[&str] = &["permitted", "connected", "disconnected", "forgotten", "reported"];

/// How long a node plugin may take to be gone after a call that it did not answer, in milliseconds.
const DEATH_MS: u64 = 10_000;

/// The node plugin dies after each step of staging in turn, on one volume, and each attempt goes on where the last one
/// ended; the same for unstaging. In the end the volume is there, or gone, and no content is lost.
pub(super) async fn between_steps(lab: &mut VmLab) -> Result<()> {
    let node = NODES[1];
    for (name, kind, required) in [
        ("die-ext4", Kind::Ext4, DEATHS_OVER_A_FILE_SYSTEM),
        ("die-block", Kind::Block, DEATHS_OVER_A_DEVICE),
    ] {
        let mut volume = Volume::create(lab, name, kind, &[]).await?;
        volume.attach(lab, node).await?;
        let mut deaths = Vec::new();
        for step in Step::ALL.into_iter().filter(|step| step.is_of_stage()) {
            if die(lab, node, step, async |lab| volume.try_stage(lab, node).await).await? {
                deaths.push(step.name());
            } else {
                // The step was not needed, and all after it are done: begin anew for the next one.
                volume.unstage(lab, node).await?;
            }
        }
        lab.restart_node(node, &NodeOptions::default()).await?;
        volume.stage(lab, node).await?;
        volume.publish(lab, node).await?;
        let path = match kind {
            Kind::Ext4 | Kind::Xfs => format!("{}/noise", volume.target()),
            Kind::Block | Kind::SharedBlock => volume.target(),
        };
        let written = write_noise(lab, node, &path).await?;
        volume.unpublish(lab, node).await?;
        for step in Step::ALL.into_iter().filter(|step| !step.is_of_stage()) {
            if die(lab, node, step, async |lab| volume.try_unstage(lab, node).await).await? {
                deaths.push(step.name());
            } else {
                volume.stage(lab, node).await?;
            }
        }
        let missing: Vec<_> = required.iter().filter(|step| !deaths.contains(step)).collect();
        ensure!(missing.is_empty(), "{name}: it did not die after {missing:?}, only after {deaths:?}");
        lab.restart_node(node, &NodeOptions::default()).await?;
        volume.unstage(lab, node).await?;
        volume.expect_gone(lab, node).await?;
        volume.stage(lab, node).await?;
        volume.publish(lab, node).await?;
        expect_checksum(lab, node, &path, &written).await?;
        volume.take(lab, node).await?;
        volume.delete(lab).await?;
    }
    given_up(lab, node).await
}

/// Wherever staging was cut short, kubelet may as well give it up: unstaging then leaves nothing.
async fn given_up(lab: &mut VmLab, node: &str) -> Result<()> {
    for step in Step::ALL.into_iter().filter(|step| step.is_of_stage()) {
        let mut volume = Volume::create(lab, &format!("given-up-{}", step.name()), Kind::Ext4, &[]).await?;
        volume.attach(lab, node).await?;
        die(lab, node, step, async |lab| volume.try_stage(lab, node).await).await?;
        lab.restart_node(node, &NodeOptions::default()).await?;
        volume.unstage(lab, node).await?;
        volume.expect_gone(lab, node).await?;
        volume.detach(lab, node).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// Makes a call on a new node plugin that dies after `step`, if it comes to that, until it has died or answered;
/// whether it died. If not, the next one dies nowhere.
async fn die(
    lab: &mut VmLab,
    node: &str,
    step: Step,
    call: impl AsyncFn(&VmLab) -> Result<Result<(), Status>>,
) -> Result<bool> {
    let settings = format!("die_after_step = \"{}\"", step.name());
    lab.restart_node(node, &NodeOptions { settings }).await?;
    let guest = lab.guest(node)?;
    for _ in 0..MOST_CALLS {
        let Err(status) = call(lab).await? else {
            lab.restart_node(node, &NodeOptions::default()).await?;
            return Ok(false);
        };
        let died = guest
            .eventually("it has died", DEATH_MS, async || lab.node_ended(node).await?.context("it lives"))
            .await;
        if died.is_ok() {
            return Ok(true);
        }
        ensure!(is_passing(&status), "it was to die after {}: {status}", step.name());
    }
    bail!("it neither dies after {} nor answers", step.name())
}

/// How often a call is made that may pass, at most.
const MOST_CALLS: u32 = 5;

/// A machine loses its power with a volume mounted. It comes back with another boot id and nothing connected; what
/// kubelet asks for then is made anew, and what was durable is there.
pub(super) async fn reboot(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    let mut volume = Volume::create(lab, "reboot", Kind::Ext4, &[]).await?;
    volume.bring(lab, node).await?;
    let file = format!("{}/noise", volume.target());
    let written = write_noise(lab, node, &file).await?;
    let boot = boot_id(lab, node).await?;
    lab.reboot_node(node).await?;
    ensure!(boot_id(lab, node).await? != boot, "it did not boot");
    volume.stage(lab, node).await.context("after the reboot")?;
    volume.publish(lab, node).await?;
    expect_checksum(lab, node, &file, &written).await?;
    volume.take(lab, node).await?;
    volume.delete(lab).await
}

async fn boot_id(lab: &VmLab, node: &str) -> Result<String> {
    lab.guest(node)?.run(&["cat", "/proc/sys/kernel/random/boot_id"]).await
}

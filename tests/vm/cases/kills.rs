//! The node plugin, or its whole machine, dies.

use anyhow::{Context, Result, bail, ensure};
use node::Step;
use tests::requests::is_passing;
use tests::vm::{NODES, NodeOptions, VmLab};
use tonic::Status;

use super::life_cycle::{expect_checksum, write_noise};
use crate::volume::{Kind, Volume};

/// Steps of staging an empty volume as a file system: after each it has to have died.
const OVER_NOTHING: &[Step] =
    &[Step::Permitted, Step::Connected, Step::Probed, Step::Formatted, Step::Checked, Step::Mounted];

/// The same once it has content.
const OVER_CONTENT: &[Step] = &[Step::Permitted, Step::Connected, Step::Probed, Step::Checked, Step::Mounted];

/// The same of a block volume, which has nothing to probe, format or mount.
const OVER_A_DEVICE: &[Step] = &[Step::Permitted, Step::Connected];

/// Steps of unstaging.
const UNSTAGING: &[Step] = &[Step::Unmounted, Step::Disconnected, Step::Forgotten, Step::Reported];

/// What a node plugin logs when it ends itself after a step.
const LAST_WORDS: &str = "ending itself with SIGKILL";

/// How a program has ended that SIGKILL ended, in the words of its agent.
const KILLED: &str = "signal: 9";

/// How long a node plugin may take to be gone after a call that it did not answer, in milliseconds.
const DEATH_MS: u64 = 10_000;

/// How often a call is made that may pass, at most.
const MOST_CALLS: u32 = 5;

/// The node plugin dies after each step of staging in turn, on one volume, and each attempt goes on where the last one
/// ended; the same for unstaging, and for staging again what has content then. In the end the volume is there, or gone,
/// and no content is lost.
pub(super) async fn between_steps(lab: &mut VmLab) -> Result<()> {
    let node = NODES[1];
    for (name, kind, at_first, later) in [
        ("die-ext4", Kind::Ext4, OVER_NOTHING, OVER_CONTENT),
        ("die-block", Kind::Block, OVER_A_DEVICE, OVER_A_DEVICE),
    ] {
        let mut volume = Volume::create(lab, name, kind, &[]).await?;
        volume.attach(lab, node).await?;
        die_while_staging(lab, node, &volume, at_first).await?;
        volume.stage(lab, node).await?;
        volume.publish(lab, node).await?;
        let path = match kind {
            Kind::Ext4 | Kind::Xfs => format!("{}/noise", volume.target()),
            Kind::Block | Kind::SharedBlock => volume.target(),
        };
        let written = write_noise(lab, node, &path).await?;
        volume.unpublish(lab, node).await?;
        die_while_unstaging(lab, node, &volume).await?;
        volume.unstage(lab, node).await?;
        volume.expect_gone(lab, node).await?;
        die_while_staging(lab, node, &volume, later).await.context("with content")?;
        volume.stage(lab, node).await?;
        volume.publish(lab, node).await?;
        expect_checksum(lab, node, &path, &written).await?;
        volume.take(lab, node).await?;
        volume.delete(lab).await?;
    }
    given_up(lab, node).await
}

/// Stages until it has died after each step that it takes, which has to be after all `required` ones. Afterwards a node
/// plugin runs that dies nowhere.
async fn die_while_staging(lab: &mut VmLab, node: &str, volume: &Volume, required: &[Step]) -> Result<()> {
    for step in Step::ALL.into_iter().filter(|step| step.is_of_stage()) {
        let died = die(lab, node, volume, step, async |lab| volume.try_stage(lab, node).await).await?;
        ensure!(died || !required.contains(&step), "{}: not after {}", volume.id, step.name());
        if !died {
            // The step was not needed, and all after it are done: begin anew for the next one.
            volume.unstage(lab, node).await?;
        }
    }
    lab.restart_node(node, &NodeOptions::default()).await
}

/// The same for unstaging.
async fn die_while_unstaging(lab: &mut VmLab, node: &str, volume: &Volume) -> Result<()> {
    for step in UNSTAGING {
        let died = die(lab, node, volume, *step, async |lab| volume.try_unstage(lab, node).await).await?;
        ensure!(died, "{}: not after {}", volume.id, step.name());
    }
    lab.restart_node(node, &NodeOptions::default()).await
}

/// Wherever staging was cut short, kubelet may as well give it up: unstaging then leaves nothing.
async fn given_up(lab: &mut VmLab, node: &str) -> Result<()> {
    for step in OVER_NOTHING {
        let mut volume = Volume::create(lab, &format!("given-up-{}", step.name()), Kind::Ext4, &[]).await?;
        volume.attach(lab, node).await?;
        let died = die(lab, node, &volume, *step, async |lab| volume.try_stage(lab, node).await).await?;
        ensure!(died, "{}: not after {}", volume.id, step.name());
        lab.restart_node(node, &NodeOptions::default()).await?;
        volume.unstage(lab, node).await?;
        volume.expect_gone(lab, node).await?;
        volume.detach(lab, node).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// Makes a call on a new node plugin that dies after `step` on the volume, if it comes to that, until it has died of
/// just that or answered; whether it died. If not, the next one dies nowhere.
async fn die(
    lab: &mut VmLab,
    node: &str,
    volume: &Volume,
    step: Step,
    call: impl AsyncFn(&VmLab) -> Result<Result<(), Status>>,
) -> Result<bool> {
    let settings = format!("die_after_step = \"{}\"", step.name());
    lab.restart_node(node, &NodeOptions { settings }).await?;
    let guest = lab.guest(node)?;
    let before = last_words(lab, node, volume, step).await?;
    for _ in 0..MOST_CALLS {
        let Err(status) = call(lab).await? else {
            lab.restart_node(node, &NodeOptions::default()).await?;
            return Ok(false);
        };
        let died = guest
            .eventually("it has died", DEATH_MS, async || lab.node_ended(node).await?.context("it lives"))
            .await;
        if let Ok(how) = died {
            ensure!(how.contains(KILLED), "it was to be killed after {}: {how}", step.name());
            let said = last_words(lab, node, volume, step).await?;
            ensure!(said == before + 1, "it died, but not after {}", step.name());
            return Ok(true);
        }
        ensure!(is_passing(&status), "it was to die after {}: {status}", step.name());
    }
    bail!("it neither dies after {} nor answers", step.name())
}

/// How often a node plugin has said that it ends itself after this step on this volume.
async fn last_words(lab: &VmLab, node: &str, volume: &Volume, step: Step) -> Result<usize> {
    let log = lab.node_log(node).await?;
    let words = [LAST_WORDS, &volume.id, &format!("\"{}\"", step.name())];
    Ok(log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count())
}

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
    volume.expect_gone(lab, node).await.context("after the reboot")?;
    volume.stage(lab, node).await.context("after the reboot")?;
    volume.publish(lab, node).await?;
    expect_checksum(lab, node, &file, &written).await?;
    volume.take(lab, node).await?;
    volume.delete(lab).await
}

async fn boot_id(lab: &VmLab, node: &str) -> Result<String> {
    lab.guest(node)?.run(&["cat", "/proc/sys/kernel/random/boot_id"]).await
}

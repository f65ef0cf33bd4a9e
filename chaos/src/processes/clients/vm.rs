//! A VM with an RWX block volume, that migrates from node to node. Most migrations end well; some fail, some leave a
//! side behind that the reaper has to find, some use both sides far beyond their time and must be left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use rds_csi::dev::requests::Context;
use tokio::time::Instant;
use uuid::Uuid;

use super::customer::Customer;
use super::kubelet::Kubelet;
use crate::history::{Answer, Request};
use crate::processes::ledger;

/// The size of a new volume, and by how much it grows, in bytes.
const STEP_BYTES: u64 = 16 << 20;
/// How often a VM migrates in its life.
const MIGRATIONS: std::ops::Range<u32> = 2..6;
/// How long the guest's memory takes to be copied, in ms.
const COPY_MS: std::ops::Range<u64> = 50..1_200;
/// How long a VM runs between two migrations, in ms.
const RUN_MS: std::ops::Range<u64> = 20..400;
/// One migration in so many fails.
const FAILS_ONE_IN: u32 = 6;
/// One VM in so many grows its disk after a migration.
const GROWS_ONE_IN: u32 = 3;
/// After one migration in so many, a third node is asked for before the one that leaves is proven off.
const HASTE_ONE_IN: u32 = 4;
/// After one unpublish in so many, kubelet stages once more.
const LATE_ONE_IN: u32 = 8;
/// After one publish in so many, the sidecar asks once more: it was restarted, or never heard the answer.
const ASKS_AGAIN_ONE_IN: u32 = 4;
/// How long a side that was left behind may stay until it is reaped: the migration's time, faults, and evidence.
const REAP_LIMIT: Duration = Duration::from_secs(110);
/// How long a VM that is slow uses both sides: beyond the migration's time, in ms.
const SLOW_MS: std::ops::Range<u64> = 33_000..45_000;
/// Pause between two looks whether a side was reaped, in ms.
const LOOK_MS: std::ops::Range<u64> = 500..1_500;
/// How often a deletion is tried that is refused: until the nodes have reported that they are off.
const DELETIONS: u32 = 40;

/// How a VM's migrations go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Temper {
    /// They end soon, well or not.
    Quick,
    /// One side stays staged, and nobody uses it.
    Lagging,
    /// Both sides are in use for longer than the migration may take.
    Slow,
}

/// A VM and its disk.
struct Vm {
    customer: Customer,
    temper: Temper,
    volume: String,
    volume_context: Context,
    size_bytes: u64,
    /// What each node was told that has it, as far as the VM knows.
    published: BTreeMap<String, Context>,
    runs_on: Option<String>,
}

/// One VM after the other.
pub(super) async fn live(mut customer: Customer, temper: Temper) {
    while !customer.is_stopped() {
        let volume = format!("pvc-{}", Uuid::from_u128(customer.random.random()));
        customer.lab.follower.begin(&volume);
        let request = Request::Create { volume: volume.clone(), size_bytes: STEP_BYTES, shared: true };
        let Some(made) = customer.insist(&request, true).await else { return };
        if made.answer != Answer::Ok {
            customer.lab.recorder.trouble(format!("{request:?} was answered {:?}", made.answer));
            return;
        }
        let mut vm = Vm {
            customer,
            temper,
            volume,
            volume_context: made.volume_context,
            size_bytes: STEP_BYTES,
            published: BTreeMap::new(),
            runs_on: None,
        };
        for _ in 0..vm.customer.random.random_range(MIGRATIONS) {
            if vm.customer.is_stopped() || vm.run_for_a_while().await.is_none() {
                break;
            }
        }
        // The last one of the run stays as it is, for the final read.
        if !vm.customer.is_stopped() {
            vm.retire().await;
        }
        customer = vm.customer;
    }
}

impl Vm {
    /// Runs somewhere, and migrates once. None if nobody answers any more.
    async fn run_for_a_while(&mut self) -> Option<()> {
        let Some(source) = self.running_on() else {
            let node = self.any_node_but(None)?;
            return self.start_on(&node).await;
        };
        self.customer.pause(RUN_MS).await;
        let target = self.any_node_but(Some(&source))?;
        let Answer::Published(context) = self.publish(&target).await? else {
            // An earlier side is still there, or was reaped and not unpublished since.
            self.leave_all_but(&source).await?;
            return Some(());
        };
        if !self.kubelet(&target).bring(&context).await {
            return self.leave(&target).await;
        }
        match self.temper {
            Temper::Quick => self.migrate(&source, &target).await?,
            Temper::Lagging => self.leave_a_side_behind(&source, &target).await?,
            Temper::Slow => self.use_both(&source, &target).await?,
        }
        if self.customer.random.random_ratio(1, GROWS_ONE_IN) {
            self.grow().await?;
        }
        Some(())
    }

    /// The node that the VM runs on, if it still has its disk there: a node's reboot ends both.
    fn running_on(&mut self) -> Option<String> {
        let node = self.runs_on.take()?;
        let is_held =
            self.customer.lab.cluster().state_directory(&node).join("held").join(&self.volume).exists();
        self.runs_on = is_held.then_some(node);
        self.runs_on.clone()
    }

    async fn start_on(&mut self, node: &str) -> Option<()> {
        self.leave_all_but(node).await?;
        let Answer::Published(context) = self.publish(node).await? else {
            return self.leave(node).await;
        };
        if self.kubelet(node).bring(&context).await && self.kubelet(node).open() {
            self.runs_on = Some(node.to_owned());
        }
        Some(())
    }

    async fn migrate(&mut self, source: &str, target: &str) -> Option<()> {
        self.customer.pause(COPY_MS).await;
        let fails = self.customer.random.random_ratio(1, FAILS_ONE_IN) || !self.kubelet(target).open();
        let (stays, leaves) = if fails { (source, target) } else { (target, source) };
        self.kubelet(leaves).close();
        self.runs_on = Some(stays.to_owned());
        if self.customer.random.random_ratio(1, HASTE_ONE_IN) {
            self.ask_for_third(stays, leaves).await;
        }
        self.leave(leaves).await
    }

    /// The side that leaves is unpublished before it is unstaged, and a third node is asked for at once: it has to wait
    /// until the other one is proven off.
    async fn ask_for_third(&mut self, stays: &str, leaves: &str) {
        let third = self.customer.lab.doors.nodes().into_iter().find(|node| node != stays && node != leaves);
        let Some(third) = third else { return };
        let leave = Request::Unpublish { volume: self.volume.clone(), node: leaves.to_owned() };
        let come = Request::Publish { volume: self.volume.clone(), node: third.clone() };
        let reply = self.customer.ask_both(&leave, &come, true).await;
        if let Some(Answer::Published(context)) = reply.map(|reply| reply.answer) {
            self.kubelet(&third).bring(&context).await;
            self.published.insert(third, context);
        }
    }

    /// One side stays staged and idle until it is reaped. Then it is unpublished, which lets it come again.
    async fn leave_a_side_behind(&mut self, source: &str, target: &str) -> Option<()> {
        let target_stays = self.customer.random.random_bool(0.6) && self.kubelet(target).open();
        let (stays, idle) = if target_stays { (target, source) } else { (source, target) };
        self.kubelet(idle).close();
        self.runs_on = Some(stays.to_owned());
        self.kubelet(idle).take_from_pod().await;
        let third = self.customer.lab.doors.nodes().into_iter().find(|node| node != stays && node != idle);
        let begun = Instant::now();
        loop {
            let request = Request::Read { volume: self.volume.clone() };
            match self.customer.ask(&request, true).await.map(|reply| reply.answer) {
                // A node that rebooted is idle too: then it may be the other side that went.
                Some(Answer::Read(Some(found))) if !found.nodes.contains(idle) || found.nodes.len() < 2 => {
                    break;
                }
                Some(Answer::Read(None)) => return None,
                _ if begun.elapsed() > REAP_LIMIT => {
                    let volume = &self.volume;
                    self.customer.lab.recorder.trouble(format!(
                        "{volume}: {idle} was left behind idle and not reaped in {} s",
                        REAP_LIMIT.as_secs()
                    ));
                    break;
                }
                _ => {}
            }
            if self.customer.is_stopped() {
                return Some(());
            }
            // Somebody else who wants it has to wait.
            if let Some(third) = third.as_deref().filter(|_| begun.elapsed().as_secs().is_multiple_of(10)) {
                let request = Request::Publish { volume: self.volume.clone(), node: third.to_owned() };
                if let Some(Answer::Published(context)) =
                    self.customer.ask(&request, true).await.map(|r| r.answer)
                {
                    self.published.insert(third.to_owned(), context);
                }
            }
            self.customer.pause(LOOK_MS).await;
        }
        self.leave(idle).await
    }

    async fn use_both(&mut self, source: &str, target: &str) -> Option<()> {
        if !self.kubelet(target).open() {
            return self.leave(target).await;
        }
        self.customer.pause(SLOW_MS).await;
        self.migrate(source, target).await
    }

    async fn grow(&mut self) -> Option<()> {
        self.size_bytes += STEP_BYTES;
        let request = Request::Expand { volume: self.volume.clone(), size_bytes: self.size_bytes };
        self.customer.insist(&request, true).await.map(drop)
    }

    async fn publish(&mut self, node: &str) -> Option<Answer> {
        let request = Request::Publish { volume: self.volume.clone(), node: node.to_owned() };
        let mut answer = self.customer.insist(&request, true).await?.answer;
        if let Answer::Published(_) = &answer
            && self.customer.random.random_ratio(1, ASKS_AGAIN_ONE_IN)
        {
            answer = self.customer.insist(&request, true).await?.answer;
        }
        if let Answer::Published(context) = &answer {
            self.published.insert(node.to_owned(), context.clone());
        }
        Some(answer)
    }

    /// The pod on the node has ended: kubelet takes the volume from it, and the sidecar unpublishes it.
    async fn leave(&mut self, node: &str) -> Option<()> {
        self.kubelet(node).close();
        // What cannot be unstaged now is cut by the node's session.
        self.kubelet(node).take().await;
        let request = Request::Unpublish { volume: self.volume.clone(), node: node.to_owned() };
        self.customer.insist(&request, true).await?;
        if let Some(context) = self.published.remove(node)
            && self.customer.random.random_ratio(1, LATE_ONE_IN)
        {
            self.kubelet(node).bring_late(&context).await;
        }
        Some(())
    }

    async fn leave_all_but(&mut self, stays: &str) -> Option<()> {
        for node in self.customer.lab.doors.nodes() {
            if node != stays {
                self.leave(&node).await?;
            }
        }
        Some(())
    }

    /// The VM is deleted, and its disk.
    async fn retire(&mut self) -> Option<()> {
        self.leave_all_but("").await?;
        let lab = self.customer.lab.clone();
        // Its history goes with it.
        while !ledger::look(&lab, &self.volume).await {
            self.customer.pause(LOOK_MS).await;
            if self.customer.is_stopped() {
                return Some(());
            }
        }
        let request = Request::Delete { volume: self.volume.clone() };
        for _ in 0..DELETIONS {
            if self.customer.insist(&request, true).await?.answer == Answer::Ok {
                lab.follower.end(&self.volume);
                return Some(());
            }
            self.customer.pause(LOOK_MS).await;
        }
        lab.recorder.trouble(format!("{} cannot be deleted", self.volume));
        None
    }

    fn any_node_but(&mut self, but: Option<&str>) -> Option<String> {
        let nodes: Vec<_> =
            self.customer.lab.doors.nodes().into_iter().filter(|node| Some(node.as_str()) != but).collect();
        nodes.choose(&mut self.customer.random).cloned()
    }

    fn kubelet<'a>(&'a self, node: &'a str) -> Kubelet<'a> {
        Kubelet { lab: &self.customer.lab, node, volume: &self.volume, volume_context: &self.volume_context }
    }
}

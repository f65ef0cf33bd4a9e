//! A pod with a volume that one node may have, and no other until it has left.

use rand::Rng;
use rand::seq::IndexedRandom;
use uuid::Uuid;

use super::customer::Customer;
use super::kubelet::Kubelet;
use crate::history::{Answer, Request};
use crate::processes::ledger;

/// The size of a new volume, in bytes.
const SIZE_BYTES: u64 = 8 << 20;
/// How often the pod is rescheduled.
const MOVES: std::ops::Range<u32> = 1..5;
/// How long it stays on a node, in ms.
const STAY_MS: std::ops::Range<u64> = 20..600;
/// One pod in so many is followed by the next one before its volume is off.
const HASTE_ONE_IN: u32 = 3;
/// How often a deletion is tried that is refused, and the pause between two tries, in ms.
const DELETIONS: u32 = 40;
const DELETION_PAUSE_MS: std::ops::Range<u64> = 200..800;

/// One volume after the other.
pub(super) async fn live(mut customer: Customer) {
    while !customer.is_stopped() {
        let volume = format!("pvc-{}", Uuid::from_u128(customer.random.random()));
        customer.lab.follower.begin(&volume);
        if use_once(&mut customer, &volume).await.is_none() {
            return;
        }
    }
}

async fn use_once(customer: &mut Customer, volume: &str) -> Option<()> {
    let request = Request::Create { volume: volume.to_owned(), size_bytes: SIZE_BYTES, shared: false };
    let made = customer.insist(&request, false).await?;
    let nodes = customer.lab.doors.nodes();
    for _ in 0..customer.random.random_range(MOVES) {
        let (node, other) = (nodes.choose(&mut customer.random)?, nodes.choose(&mut customer.random)?);
        let request = Request::Publish { volume: volume.to_owned(), node: node.clone() };
        let answer = customer.insist(&request, false).await?.answer;
        let lab = customer.lab.clone();
        let kubelet = Kubelet { lab: &lab, node, volume, volume_context: &made.volume_context };
        if let Answer::Published(context) = &answer
            && kubelet.bring(context).await
        {
            kubelet.open();
        }
        if other != node {
            // A second pod elsewhere has to be refused.
            customer.ask(&Request::Publish { volume: volume.to_owned(), node: other.clone() }, false).await;
        }
        customer.pause(STAY_MS).await;
        if customer.is_stopped() {
            return Some(());
        }
        kubelet.close();
        if other != node && customer.random.random_ratio(1, HASTE_ONE_IN) {
            hurry(customer, kubelet, other).await;
        }
        kubelet.take().await;
        for node in [node, other] {
            let request = Request::Unpublish { volume: volume.to_owned(), node: node.clone() };
            customer.insist(&request, false).await?;
        }
    }
    delete(customer, volume).await
}

/// The volume is unpublished before it is unstaged, and the next pod's node is asked for at once: it has to wait until the
/// first one is proven off.
async fn hurry(customer: &mut Customer, from: Kubelet<'_>, to: &str) {
    let leave = Request::Unpublish { volume: from.volume.to_owned(), node: from.node.to_owned() };
    let come = Request::Publish { volume: from.volume.to_owned(), node: to.to_owned() };
    let reply = customer.ask_both(&leave, &come, false).await;
    if let Some(Answer::Published(context)) = reply.map(|reply| reply.answer) {
        let next = Kubelet { node: to, ..from };
        next.bring(&context).await;
        next.take().await;
    }
}

async fn delete(customer: &mut Customer, volume: &str) -> Option<()> {
    let lab = customer.lab.clone();
    while !ledger::look(&lab, volume).await {
        customer.pause(DELETION_PAUSE_MS).await;
        if customer.is_stopped() {
            return Some(());
        }
    }
    for _ in 0..DELETIONS {
        let request = Request::Delete { volume: volume.to_owned() };
        if customer.insist(&request, false).await?.answer == Answer::Ok {
            lab.follower.end(volume);
            // What is gone stays gone.
            customer.ask(&Request::Read { volume: volume.to_owned() }, false).await;
            return Some(());
        }
        customer.pause(DELETION_PAUSE_MS).await;
    }
    lab.recorder.trouble(format!("{volume} cannot be deleted"));
    None
}

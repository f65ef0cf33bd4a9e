//! Those who use the driver all the time: VMs that migrate, pods with a volume of one node, and readers.
//!
//! Each client lives until it is told to stop, and then ends the step that it is in: once everything is healed, every
//! request has to be answered in bounded time.
//!
//! - `customer`: asks as a sidecar does, again and again, and records each call
//! - `kubelet`: what a node's kubelet and the VM on it do
//! - `vm`: a VM with an RWX block volume that migrates
//! - `pod`: a volume that one node may have
//! - `reader`: reads

mod customer;
mod kubelet;
mod pod;
mod reader;
mod vm;

use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::lab::Lab;
use customer::Customer;
pub(super) use kubelet::close;
use vm::Temper;

/// VMs that migrate well most of the time.
const QUICK_VMS: u32 = 5;
/// VMs that leave a side of each migration behind, to be reaped.
const LAGGING_VMS: u32 = 4;
/// VMs that use both sides far beyond the migration's time.
const SLOW_VMS: u32 = 1;
/// Pods.
const PODS: u32 = 3;
/// Readers.
const READERS: u32 = 2;

/// Lets all of them live.
pub(super) fn start(lab: &Arc<Lab>, random: &mut StdRng, stop: &CancellationToken) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    let mut id = 0;
    let mut customer = || {
        id += 1;
        Customer::new(id, lab.clone(), random.random(), stop.clone())
    };
    for (count, temper) in
        [(QUICK_VMS, Temper::Quick), (LAGGING_VMS, Temper::Lagging), (SLOW_VMS, Temper::Slow)]
    {
        for _ in 0..count {
            clients.spawn(vm::live(customer(), temper));
        }
    }
    for _ in 0..PODS {
        clients.spawn(pod::live(customer()));
    }
    for _ in 0..READERS {
        clients.spawn(reader::live(customer()));
    }
    clients
}

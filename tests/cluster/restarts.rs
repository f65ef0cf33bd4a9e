//! The leader is killed and back at once, under load: nothing that was acknowledged is lost.
//!
//! A restarted leader that led on without a new vote would lose writes here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use proto::csi::v1::ControllerGetVolumeRequest;
use tests::requests::{MIB, create, eventually, insist, publish, unpublish, volume_id};
use tests::{Csi, Lab};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often the leader is killed.
const CYCLES: usize = 30;

/// Callers, each with volumes of its own.
const CALLERS: usize = 6;

/// Acknowledgements that every caller gets between two kills: load, not a pause, spaces them. That it is every caller
/// lets slow things finish too, such as the making of a disk: with leaders that live too short, they never would.
const ACKNOWLEDGED_PER_CYCLE: usize = 3;

/// A caller has one volume at first, and every so many steps makes another, up to so many.
const STEPS_PER_VOLUME: usize = 10;
const MOST_VOLUMES: usize = 6;

/// What a caller was told: its volumes, and for each the node that has it.
type Acknowledged = BTreeMap<String, Option<&'static str>>;

/// One caller's way through the replicas.
struct Caller {
    number: usize,
    replicas: Vec<Csi>,
    turn: usize,
    steps: usize,
    acknowledged: Acknowledged,
    /// The newest generation that a publish answered, by volume: it only grows.
    generations: BTreeMap<String, u64>,
}

impl Caller {
    /// The next replica: every call goes to another one than the last.
    fn next(&mut self) -> Csi {
        self.turn += 1;
        self.replicas[self.turn % self.replicas.len()].clone()
    }

    /// One more thing done and acknowledged.
    async fn step(&mut self) -> Result<()> {
        let made = self.acknowledged.len();
        self.steps += 1;
        if made == 0 || (made < MOST_VOLUMES && self.steps.is_multiple_of(STEPS_PER_VOLUME)) {
            let name = format!("caller-{}-volume-{made}", self.number);
            let csi = self.next();
            let id = volume_id(insist("create", || csi.create(create(&name, MIB))).await?);
            self.acknowledged.insert(id, None);
            return Ok(());
        }
        let csi = self.next();
        let at = self.steps % made;
        let (id, node) =
            self.acknowledged.iter().nth(at).map(|(id, node)| (id.clone(), *node)).context("a volume")?;
        let now = match node {
            None => {
                let node = if self.steps.is_multiple_of(3) { "node-a" } else { "node-b" };
                let answer = insist("publish", || csi.publish(publish(&id, node))).await?;
                let generation: u64 =
                    answer.publish_context.get("generation").context("a generation")?.parse()?;
                let before = self.generations.insert(id.clone(), generation);
                ensure!(
                    before.is_none_or(|before| before < generation),
                    "{id}: {before:?}, then {generation}"
                );
                Some(node)
            }
            Some(node) => {
                insist("unpublish", || csi.unpublish(unpublish(&id, node))).await?;
                None
            }
        };
        self.acknowledged.insert(id.clone(), now);
        expect_published(&self.next(), &id, now).await
    }
}

/// Fails unless a replica reads what was acknowledged.
async fn expect_published(csi: &Csi, id: &str, node: Option<&'static str>) -> Result<()> {
    let request = || ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let found =
        insist("get", || csi.get(request())).await.with_context(|| format!("{id} was acknowledged"))?;
    let nodes = found.status.map(|status| status.published_node_ids).unwrap_or_default();
    ensure!(nodes.iter().map(String::as_str).eq(node), "{id}: {node:?} was acknowledged, {nodes:?} is there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_and_back_at_once_loses_nothing() -> Result<()> {
    Lab::tell(async |lab| {
        let replicas: Vec<Csi> = lab.controllers().iter().map(|name| lab.csi(name)).collect::<Result<_>>()?;
        let enough = Arc::new(AtomicBool::new(false));
        let (count, mut counted) = watch::channel([0_usize; CALLERS]);
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let (enough, count, replicas) = (enough.clone(), count.clone(), replicas.clone());
            callers.spawn(async move {
                let mut caller = Caller {
                    number,
                    replicas,
                    turn: number,
                    steps: 0,
                    acknowledged: BTreeMap::new(),
                    generations: BTreeMap::new(),
                };
                while !enough.load(Ordering::Relaxed) {
                    caller.step().await.with_context(|| format!("caller {number}"))?;
                    count.send_modify(|count| count[number] += 1);
                }
                anyhow::Ok(caller.acknowledged)
            });
        }
        drop(count);
        for _ in 0..CYCLES {
            let until = counted.borrow().map(|count| count + ACKNOWLEDGED_PER_CYCLE);
            let all_got_on =
                |count: &[usize; CALLERS]| count.iter().zip(&until).all(|(count, until)| count >= until);
            tokio::select! {
                got_on = counted.wait_for(all_got_on) => drop(got_on?),
                // Before the end: it failed, and says why.
                Some(ended) = callers.join_next() => drop(ended??),
            }
            let leader = lab.leader_name().await?;
            lab.kill(&leader)?;
            lab.start_again(&leader).await?;
        }
        enough.store(true, Ordering::Relaxed);
        for caller in callers.join_all().await {
            for (id, node) in caller? {
                for csi in &replicas {
                    expect_published(csi, &id, node).await?;
                }
            }
        }
        eventually("all replicas are equal", async || lab.expect_equal_replicas().await).await?;
        lab.settle().await
    })
    .await
}

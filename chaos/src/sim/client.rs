//! A simulated orchestrator: it makes volumes, runs VMs on them, migrates the VMs, and asks in between; and kubelet's
//! part on the nodes.
//!
//! A client asks one thing at a time, about one volume. It comes again when it is not told, as sidecars do. When the
//! world is being healed it brings what it has begun to an end, and leaves its volume deleted or in use on one node.

use std::sync::Arc;
use std::time::Duration;

use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, ByteSize, FsType, HostAddress, VolumeId,
    VolumeParameters,
};

use super::node::NodeError;
use super::replica::{Failure, Outcome, Published, Replica};
use super::rng::SimRng;
use super::runtime::{SimInstant, now_micros, random, sleep_ms, timeout};
use super::world::{Act, World, in_process};
use crate::history::{Answer, Operation, Request, VolumeRead};

/// How long a client waits for an answer.
const CALL_LIMIT: Duration = Duration::from_secs(12);
/// What a replica takes for the caller's deadline.
const DEADLINE: Duration = Duration::from_secs(10);
/// The pause between two tries, in ms.
const RETRY_MS: (u64, u64) = (200, 3_000);
/// So often a step is tried that may be given up.
const TRIES: u32 = 12;
/// The least timeout of migrations: everything that waits for it is soon there.
const MIGRATION_TIMEOUT_SECONDS: u32 = 30;
/// Volumes that are deleted as soon as they are made, of a thousand.
const SHORT_LIFE_PER_MILLE: u64 = 250;
/// Calls after which the volume is read, and publishes that are repeated, of a thousand.
const READ_AFTER_PER_MILLE: u64 = 300;
const REPEATED_PER_MILLE: u64 = 200;
/// Creations and publishes that are undone instead of tried again, of a thousand that were not answered.
const UNDONE_PER_MILLE: u64 = 300;
/// Unpublishes that are given up for a while to try another node, of a thousand of those that fail.
const IMPATIENT_PER_MILLE: u64 = 400;
/// Unpublishes that do not wait for the node, which cannot be asked, of a thousand tries: kubelet is given up.
const FORCED_PER_MILLE: u64 = 150;
/// How long a client waits until an overdue migration loses a side, in ms: the deadline, a lost session, some looks.
const REAP_WAIT_MS: u64 = 100_000;
const GIBIBYTE: u64 = 1 << 30;

/// A client and what it is busy with.
pub(crate) struct Client {
    pub(super) world: Arc<World>,
    number: u32,
    volumes: u32,
    pub(super) rng: SimRng,
}

/// A volume of a client.
pub(super) struct Volume {
    pub(super) id: VolumeId,
    shared: bool,
    size_bytes: u64,
}

/// How a migration is to go.
#[derive(Debug, Clone, Copy)]
enum Script {
    /// The VM moves.
    Success,
    /// It stays, and the target is let go.
    Failure,
    /// It stays, and nobody lets the target go.
    IdleTarget,
    /// It moved, and nobody lets the source go.
    IdleSource,
    /// Both sides have it open for long.
    BothOpen,
}

impl Client {
    /// One of several.
    pub(crate) fn new(world: Arc<World>, number: u32) -> Self {
        Self { world, number, volumes: 0, rng: random(SimRng::fork) }
    }

    pub(super) fn is_chaos(&self) -> bool {
        self.world.act() == Act::Chaos
    }

    /// Goes on until the world is healed and its last volume is at rest.
    pub(crate) async fn run(mut self) {
        sleep_ms(self.rng.below(2_000)).await;
        while self.is_chaos() {
            let Some(volume) = self.next_volume() else { return };
            if self.rng.per_mille(SHORT_LIFE_PER_MILLE) {
                self.short_life(&volume).await;
            } else {
                self.life(volume).await;
            }
        }
    }

    /// One that this client has never had, in its hand from now on.
    pub(super) fn next_volume(&mut self) -> Option<Volume> {
        let (number, volumes) = (self.number, self.volumes);
        self.volumes += 1;
        let id = VolumeId::parse(&format!("pvc-00000000-0000-4000-{number:04}-{volumes:012}")).ok()?;
        let size_bytes = self.rng.between(1, 4) * GIBIBYTE;
        self.world.put_in_hand(number, &id);
        Some(Volume { id, shared: self.rng.per_mille(800), size_bytes })
    }

    /// What is made and deleted at once shows what comes late.
    pub(super) async fn short_life(&mut self, volume: &Volume) {
        if self.create(volume).await {
            self.read(volume).await;
            self.delete(volume).await;
            self.read(volume).await;
        }
    }

    async fn life(&mut self, mut volume: Volume) {
        if !self.create(&volume).await {
            return;
        }
        for _ in 0..self.rng.between(1, 3) {
            if !self.is_chaos() {
                break;
            }
            if let Some(at) = self.vm(&mut volume).await {
                if !self.is_chaos() {
                    return;
                }
                self.shut_down(&volume, at).await;
            }
            self.read(&volume).await;
        }
        self.delete(&volume).await;
    }

    /// Runs a VM somewhere and migrates it; where it is at the end, if it still runs.
    async fn vm(&mut self, volume: &mut Volume) -> Option<usize> {
        let mut at = self.any_node(None);
        if !self.bring_up(volume, at).await {
            self.shut_down(volume, at).await;
            return None;
        }
        self.world.use_device(at, &volume.id, |used| used.open = true);
        for _ in 0..self.rng.between(1, 4) {
            sleep_ms(self.rng.between(100, 8_000)).await;
            if !self.is_chaos() {
                break;
            }
            match self.rng.below(8) {
                0 => self.expand(volume).await,
                1 => self.read(volume).await,
                _ => at = self.migrate(volume, at).await,
            }
            if !self.world.nodes[at].has(&volume.id) {
                // The node rebooted under it, or lost it.
                self.shut_down(volume, at).await;
                return None;
            }
        }
        Some(at)
    }

    async fn migrate(&mut self, volume: &Volume, at: usize) -> usize {
        let to = self.any_node(Some(at));
        if !self.bring_up(volume, to).await {
            self.shut_down(volume, to).await;
            return at;
        }
        let script = match self.rng.below(10) {
            0..=3 => Script::Success,
            4 => Script::Failure,
            5 | 6 => Script::IdleTarget,
            7 | 8 => Script::IdleSource,
            _ => Script::BothOpen,
        };
        self.world.tell(|| format!("client {} migrates {}: {script:?}", self.number, volume.id));
        let goes = match script {
            Script::Success | Script::IdleSource | Script::BothOpen => {
                if self.world.use_device(to, &volume.id, |used| used.open = true) { at } else { to }
            }
            Script::Failure | Script::IdleTarget => to,
        };
        let both_open_ms = match script {
            Script::BothOpen => self.rng.between(31_000, 50_000),
            Script::Success | Script::Failure | Script::IdleTarget | Script::IdleSource => {
                self.rng.between(100, 4_000)
            }
        };
        sleep_ms(both_open_ms).await;
        self.world.use_device(goes, &volume.id, |used| used.open = false);
        if matches!(script, Script::IdleTarget | Script::IdleSource) {
            self.wait_for_reap(volume, goes).await;
        }
        self.shut_down(volume, goes).await;
        if goes == at { to } else { at }
    }

    /// Waits until the node loses the volume, or for as long as that may take.
    async fn wait_for_reap(&self, volume: &Volume, node: usize) {
        let until = now_micros() + REAP_WAIT_MS * 1_000;
        while self.world.nodes[node].has(&volume.id) && now_micros() < until && self.is_chaos() {
            sleep_ms(500).await;
        }
    }

    pub(super) fn any_node(&mut self, but: Option<usize>) -> usize {
        let nodes: Vec<usize> = (0..self.world.nodes.len()).filter(|node| Some(*node) != but).collect();
        self.rng.pick(&nodes).copied().unwrap_or(0)
    }

    pub(super) async fn pause(&mut self) {
        sleep_ms(self.rng.between(RETRY_MS.0, RETRY_MS.1)).await;
    }

    /// Publishes and stages; false if that is not to be.
    async fn bring_up(&mut self, volume: &Volume, node: usize) -> bool {
        let Some(published) = self.publish(volume, node).await else { return false };
        for _ in 0..TRIES {
            let (world, id) = (self.world.clone(), volume.id.clone());
            let generation = published.generation;
            match self.on_node(node, async move { world.stage(node, &id, generation).await }).await {
                Ok(()) => return true,
                Err(NodeError::NotPermitted(why)) => {
                    self.world.tell(|| format!("node-{node} may not connect {}: {why}", volume.id));
                    return false;
                }
                Err(NodeError::Unavailable(_) | NodeError::Held) => self.pause().await,
            }
        }
        false
    }

    /// Closes, unstages and unpublishes, until it is so.
    async fn shut_down(&mut self, volume: &Volume, node: usize) {
        self.world.use_device(node, &volume.id, |used| used.open = false);
        loop {
            let (world, id) = (self.world.clone(), volume.id.clone());
            match self.on_node(node, async move { world.unstage(node, &id).await }).await {
                Ok(()) => break,
                // A machine that is off is not asked: unpublish waits for the proof.
                Err(NodeError::Unavailable(_)) if !self.world.nodes[node].is_up() => break,
                Err(NodeError::Unavailable(_)) if self.rng.per_mille(FORCED_PER_MILLE) => break,
                Err(NodeError::Unavailable(_) | NodeError::NotPermitted(_) | NodeError::Held) => {
                    self.pause().await;
                }
            }
        }
        while self.unpublish_once(volume, node).await.is_err() {
            if self.rng.per_mille(IMPATIENT_PER_MILLE) {
                self.try_elsewhere(volume, node).await;
            } else {
                self.pause().await;
            }
        }
        if self.rng.per_mille(READ_AFTER_PER_MILLE) {
            self.read(volume).await;
        }
    }

    async fn on_node<T: Send + 'static>(
        &self,
        node: usize,
        work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
    ) -> Result<T, NodeError> {
        let gone = || NodeError::Unavailable("the plugin is not there".to_owned());
        let plugin = self.world.nodes[node].plugin().ok_or_else(gone)?;
        in_process(plugin, work).await.unwrap_or_else(|| Err(gone()))
    }

    async fn create(&mut self, volume: &Volume) -> bool {
        let Volume { id, shared, size_bytes } = volume;
        let (size_bytes, shared) = (*size_bytes, *shared);
        let request = Request::Create { volume: id.to_string(), size_bytes, shared };
        loop {
            let id = id.clone();
            let serve = move |replica: Arc<Replica>| async move {
                let unusable = |why: String| Failure { code: "Internal".to_owned(), why, is_final: true };
                let size =
                    ByteSize::exactly(size_bytes).ok_or_else(|| unusable("no such size".to_owned()))?;
                let parameters = parameters().map_err(|error| unusable(error.to_string()))?;
                replica.create(&id, size, &parameters, SimInstant::now() + DEADLINE).await
            };
            match self.call(request.clone(), serve, |()| Answer::Ok).await {
                Ok(()) => return true,
                Err(failure) if failure.is_final => return false,
                Err(_) if self.rng.per_mille(UNDONE_PER_MILLE) => {
                    self.delete(volume).await;
                    return false;
                }
                Err(_) => self.pause().await,
            }
        }
    }

    async fn delete(&mut self, volume: &Volume) {
        let request = Request::Delete { volume: volume.id.to_string() };
        loop {
            let id = volume.id.clone();
            let serve = move |replica: Arc<Replica>| async move {
                replica.delete(&id, SimInstant::now() + DEADLINE).await
            };
            match self.call(request.clone(), serve, |()| Answer::Ok).await {
                Ok(()) => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn publish(&mut self, volume: &Volume, node: usize) -> Option<Published> {
        for _ in 0..TRIES {
            match self.publish_once(volume, node).await {
                Ok(_) if self.rng.per_mille(REPEATED_PER_MILLE) => {}
                Ok(published) => return Some(published),
                Err(failure) if failure.is_final => return None,
                Err(_) if self.rng.per_mille(UNDONE_PER_MILLE) => return None,
                Err(_) => self.pause().await,
            }
        }
        None
    }

    pub(super) async fn unpublish_once(&mut self, volume: &Volume, node: usize) -> Outcome<()> {
        let (id, node_id) = (volume.id.clone(), self.world.nodes[node].id.clone());
        let request = Request::Unpublish { volume: id.to_string(), node: node_id.to_string() };
        let serve = move |replica: Arc<Replica>| async move {
            replica.unpublish(&id, &node_id, SimInstant::now() + DEADLINE).await
        };
        self.call(request, serve, |()| Answer::Ok).await
    }

    pub(super) async fn publish_once(&mut self, volume: &Volume, node: usize) -> Outcome<Published> {
        let (id, node_id) = (volume.id.clone(), self.world.nodes[node].id.clone());
        let request = Request::Publish { volume: id.to_string(), node: node_id.to_string() };
        let mode = mode(volume.shared);
        let serve = move |replica: Arc<Replica>| async move {
            replica.publish(&id, &node_id, mode, SimInstant::now() + DEADLINE).await
        };
        self.call(request, serve, |published| Answer::Published(published.context.clone())).await
    }

    async fn expand(&mut self, volume: &mut Volume) {
        let size_bytes = volume.size_bytes + GIBIBYTE;
        let request = Request::Expand { volume: volume.id.to_string(), size_bytes };
        for _ in 0..TRIES {
            let id = volume.id.clone();
            let serve = move |replica: Arc<Replica>| async move {
                let size = ByteSize::exactly(size_bytes).ok_or_else(|| Failure {
                    code: "Internal".to_owned(),
                    why: "no such size".to_owned(),
                    is_final: true,
                })?;
                replica.expand(&id, size, SimInstant::now() + DEADLINE).await
            };
            match self.call(request.clone(), serve, |()| Answer::Ok).await {
                Ok(()) => {
                    volume.size_bytes = size_bytes;
                    return;
                }
                Err(failure) if failure.is_final => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn read(&mut self, volume: &Volume) {
        self.look_at(&volume.id, DEADLINE).await;
    }

    /// Reads a volume at any replica. What is not read now is read another time.
    pub(super) async fn look_at(&mut self, id: &VolumeId, deadline: Duration) {
        let request = Request::Read { volume: id.to_string() };
        let id = id.clone();
        let serve = move |replica: Arc<Replica>| async move {
            let found = replica.look(&id, SimInstant::now() + deadline).await?;
            Ok(found.map(|found| read_of(&found)))
        };
        let answer = |read: &Option<VolumeRead>| Answer::Read(read.clone());
        let _ = self.call(request, serve, answer).await;
    }

    /// One call at the socket of any replica that runs, and its record.
    async fn call<T, F>(
        &mut self,
        request: Request,
        serve: impl FnOnce(Arc<Replica>) -> F + Send,
        answer: impl Fn(&T) -> Answer,
    ) -> Outcome<T>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let unknown =
            |why: &str| Failure { code: "Unavailable".to_owned(), why: why.to_owned(), is_final: false };
        let running: Vec<_> =
            (0..self.world.places.len()).filter_map(|place| self.world.replica(place)).collect();
        let Some(replica) = self.rng.pick(&running).cloned() else {
            return Err(unknown("nobody is there"));
        };
        let started = now_micros();
        let number = self.world.begin_operation(Operation {
            client: self.number,
            started,
            ended: None,
            request,
            answer: Answer::Unknown("not answered".to_owned()),
        });
        let served = in_process(replica.group, serve(replica.clone()));
        drop((replica, running));
        let result = match timeout(CALL_LIMIT, served).await {
            Some(Some(result)) => result,
            Some(None) => Err(unknown("the replica ended")),
            None => Err(unknown("no answer in time")),
        };
        let told = match &result {
            Ok(value) => answer(value),
            Err(failure) if failure.is_final => Answer::Refused(failure.code.clone()),
            Err(failure) => Answer::Unknown(format!("{}: {}", failure.code, failure.why)),
        };
        self.world.end_operation(number, told);
        result
    }
}

/// A volume, as the history has it.
pub(crate) fn read_of(volume: &state_machine::Volume) -> VolumeRead {
    let nodes = volume.attachments.keys().map(ToString::to_string).collect();
    VolumeRead { size_bytes: volume.size.bytes(), nodes }
}

fn mode(shared: bool) -> AttachmentMode {
    let (access_mode, access_type) = if shared {
        (AccessMode::MultiNodeMultiWriter, AccessType::Block)
    } else {
        (AccessMode::SingleNodeWriter, AccessType::Mount { fs_type: FsType::Ext4 })
    };
    AttachmentMode { access_mode, access_type, read_only: false }
}

fn parameters() -> Result<VolumeParameters, state_machine::IdError> {
    let path = AppliancePath::parse("/pool/csi")?;
    let address = HostAddress::parse("192.0.2.1")?;
    let mut parameters = VolumeParameters::with_defaults(path, address, 4420);
    parameters.migration_timeout_seconds = MIGRATION_TIMEOUT_SECONDS;
    Ok(parameters)
}

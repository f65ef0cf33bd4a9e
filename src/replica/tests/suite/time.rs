//! The ledger's time: driven by the leader's monotonic clock, and only while something waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use replica::MonotonicClock;
use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, ByteSize, Command, Generation, HostAddress,
    LedgerTime, MigrationPhase, NodeId, Observed, Response, State, VolumeId, VolumeName, VolumeParameters,
};

use crate::harness::{Cluster, deadline, register};

pub(crate) const MIGRATION_TIMEOUT_SECONDS: u32 = 600;

/// Stands still unless told otherwise.
pub(crate) struct FakeClock(pub(crate) AtomicU64);

impl MonotonicClock for FakeClock {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

async fn decide(cluster: &Cluster, command: Command) -> Response {
    let deadline = deadline();
    cluster
        .running(0)
        .run(move |replica| async move { replica.propose(command, deadline).await })
        .await
        .unwrap()
}

pub(crate) async fn volume_on_two_nodes(cluster: &Cluster) -> VolumeId {
    let name = VolumeName::parse("a-volume").unwrap();
    let id = VolumeId::for_name(&name);
    let create = Command::CreateVolume {
        id: id.clone(),
        name,
        required: ByteSize::at_least(1).unwrap(),
        limit_bytes: None,
        parameters: VolumeParameters {
            migration_timeout_seconds: MIGRATION_TIMEOUT_SECONDS,
            ..VolumeParameters::with_defaults(
                AppliancePath::parse("/volumes").unwrap(),
                HostAddress::parse("10.0.0.1").unwrap(),
                4420,
            )
        },
    };
    let Response::Pending { generation } = decide(cluster, create).await else { panic!("not created") };
    let volume = id.clone();
    assert_eq!(decide(cluster, Command::SlotWasFree { volume, generation }).await, Response::Done);
    let volume = id.clone();
    assert_eq!(decide(cluster, Command::VolumeCreated { volume, generation }).await, Response::Done);
    for n in 0..2 {
        decide(cluster, register(n)).await;
        let node = NodeId::parse(&format!("node-{n}")).unwrap();
        let mode = AttachmentMode {
            access_mode: AccessMode::MultiNodeMultiWriter,
            access_type: AccessType::Block,
            read_only: false,
        };
        let publish =
            Command::Publish { volume: id.clone(), node: node.clone(), mode, observed: Observed::default() };
        let Response::Attached { generation } = decide(cluster, publish).await else {
            panic!("not attached")
        };
        let confirmed = Command::ExportConfirmed { volume: id.clone(), node, generation };
        assert_eq!(decide(cluster, confirmed).await, Response::Done);
        assert!(generation > Generation(0));
    }
    id
}

#[tokio::test]
async fn deadlines_come_with_the_leaders_clock_and_survive_it() {
    let clock = Arc::new(FakeClock(AtomicU64::new(77_000_000)));
    let mut cluster = Cluster::new();
    cluster.clocks = std::array::from_fn(|_| clock.clone() as Arc<dyn MonotonicClock>);
    cluster.start_all().await;
    let now = || cluster.replica(0).read_local(State::clock);
    decide(&cluster, register(9)).await;
    assert_eq!(now(), LedgerTime(0), "a new ledger begins at zero, whatever the machine's clock says");

    let volume = volume_on_two_nodes(&cluster).await;
    let phase = |state: &State| state.volume(&volume).and_then(|v| v.migration.clone()).unwrap().phase;
    assert!(cluster.replica(0).read_local(State::is_timed));
    let half = u64::from(MIGRATION_TIMEOUT_SECONDS) * 500;
    clock.0.fetch_add(half, Ordering::SeqCst);
    // Nobody proposes anything: a tick brings the time.
    cluster.until("half of the time is over", || now() == LedgerTime(half)).await;
    assert_eq!(cluster.replica(0).read_local(phase), MigrationPhase::Active);

    // Another leader, whose clock stands elsewhere, goes on from there.
    cluster.until_equal().await;
    clock.0.store(5, Ordering::SeqCst);
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    cluster.leader().await;
    cluster.start(leader).await;
    let survivor = (leader + 1) % 3;
    clock.0.fetch_add(half - 1, Ordering::SeqCst);
    let now = || cluster.replica(survivor).read_local(State::clock);
    cluster.until("all of the time but a millisecond is over", || now() == LedgerTime(2 * half - 1)).await;
    assert_eq!(cluster.replica(survivor).read_local(phase), MigrationPhase::Active);
    clock.0.fetch_add(1, Ordering::SeqCst);
    cluster
        .until("the migration is overdue", || {
            cluster.replica(survivor).read_local(phase) == MigrationPhase::Overdue
        })
        .await;
    assert_eq!(now(), LedgerTime(2 * half));
    // Nothing waits for the time any more.
    assert!(!cluster.replica(survivor).read_local(State::is_timed));
}

/// What would bring a wall clock in.
const WALL_CLOCKS: [&str; 8] =
    ["SystemTime", "UNIX_EPOCH", "chrono", "OffsetDateTime", "jiff", "CLOCK_REALTIME", "Utc::", "Local::"];

fn sources_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A wall clock that jumps by an hour on any replica changes nothing, because none is read where time is kept.
#[test]
fn no_wall_clock_is_read_where_the_ledgers_time_is_kept() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for room in ["src", "../state-machine/src", "../../storage/src"] {
        sources_below(&here.join(room), &mut sources);
    }
    assert!(sources.len() > 30, "only {} sources", sources.len());
    for path in sources {
        let text = std::fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            let named = WALL_CLOCKS.iter().find(|name| line.contains(**name));
            assert_eq!(named, None, "{}:{}: {line}", path.display(), index + 1);
        }
    }
}

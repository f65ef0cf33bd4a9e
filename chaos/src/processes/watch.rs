//! Watches the controllers: who leads, what each has applied, for whom each votes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::operator::v1::{StatusReply, StatusRequest};
use rds_csi::dev::requests::within;
use tokio::time::{Instant, sleep, timeout};

use super::lab::Lab;
use crate::history::{Micros, StateHash, VoteGranted};

/// Pause between two questions to one controller.
const PAUSE: Duration = Duration::from_millis(60);
/// How long a controller may take to tell its status.
const STATUS_LIMIT: Duration = Duration::from_millis(400);
/// How old the leader's last word may be.
const FRESH: Duration = Duration::from_millis(500);
/// Pause between two looks into a log.
const LOG_PAUSE: Duration = Duration::from_millis(100);
/// What a replica logs once a vote of its own is on its disk.
const VOTE_LINE: &str = "vote on disk";
/// How often somebody who waits looks again.
const WAIT_PAUSE: Duration = Duration::from_millis(20);

/// The replica that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) name: String,
    pub(super) term: u64,
    pub(super) migrations: u64,
}

/// What the controllers said last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    by: BTreeMap<String, (Instant, StatusReply)>,
    /// What the ledger's clock said in the state of any replica, each time that it had gone on, and when that was heard.
    clock: Vec<(u64, Micros)>,
    /// The cluster that each replica has named, by its id.
    clusters: BTreeMap<u64, BTreeSet<String>>,
}

impl Watch {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader, if one of the newest known term says that it is.
    pub(super) fn leader(&self) -> Option<Leader> {
        let said = self.said();
        let mut fresh = said.by.iter().filter(|(_, (at, _))| at.elapsed() < FRESH);
        let newest = fresh.clone().map(|(_, (_, status))| status.term).max()?;
        let leads = |status: &StatusReply| status.leader_id == Some(status.responder_id);
        let found = fresh.rfind(|(_, (_, status))| status.term == newest && leads(status));
        found.map(|(name, (_, status))| Leader {
            name: name.clone(),
            term: status.term,
            migrations: status.active_migrations,
        })
    }

    /// Waits for a leader of a later term than this one.
    pub(super) async fn leader_after(&self, term: u64, limit: Duration) -> Option<Leader> {
        let until = Instant::now() + limit;
        loop {
            match self.leader() {
                Some(leader) if leader.term > term => return Some(leader),
                _ if Instant::now() >= until => return None,
                Some(_) | None => sleep(WAIT_PAUSE).await,
            }
        }
    }

    /// What the controllers said that answer.
    pub(super) fn statuses(&self) -> BTreeMap<String, StatusReply> {
        let said = self.said();
        let fresh = said.by.iter().filter(|(_, (at, _))| at.elapsed() < FRESH);
        fresh.map(|(name, (_, status))| (name.clone(), status.clone())).collect()
    }

    /// Every cluster id that was named since the run began.
    pub(super) fn clusters(&self) -> BTreeSet<String> {
        self.said().clusters.values().flatten().cloned().collect()
    }

    /// The cluster that the replica belongs to; of one that died before it said so, the only one that there is.
    pub(super) fn cluster_of(&self, replica: u64) -> Option<String> {
        let named = self.said().clusters.get(&replica).cloned();
        let named = named.unwrap_or_else(|| self.clusters());
        named.first().filter(|_| named.len() == 1).cloned()
    }

    /// When a state was first heard of that goes beyond this time of the ledger: what is recorded at that time had been
    /// applied by then.
    pub(super) fn applied_by(&self, ledger_ms: u64) -> Option<Micros> {
        let said = self.said();
        let first = said.clock.partition_point(|(clock_ms, _)| *clock_ms <= ledger_ms);
        said.clock.get(first).map(|(_, heard)| *heard)
    }

    fn heard(&self, name: &str, at: Micros, status: StatusReply) {
        let mut said = self.said();
        if said.clock.last().is_none_or(|(clock_ms, _)| status.ledger_time_ms > *clock_ms) {
            said.clock.push((status.ledger_time_ms, at));
        }
        if !status.cluster_id.is_empty() {
            said.clusters.entry(status.responder_id).or_default().insert(status.cluster_id.clone());
        }
        said.by.insert(name.to_owned(), (Instant::now(), status));
    }
}

/// Asks the controller `name` for its status, again and again.
pub(super) async fn statuses(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let operator = lab.doors.operator(name)?;
    loop {
        let mut operator = operator.clone();
        let asked = operator.status(within(STATUS_LIMIT, StatusRequest {}));
        if let Ok(Ok(reply)) = timeout(STATUS_LIMIT, asked).await {
            let status = reply.into_inner();
            lab.recorder.hash(StateHash {
                replica: status.responder_id,
                index: status.applied_index.unwrap_or(0),
                hash: status.state_hash.clone(),
            });
            lab.watch.heard(name, lab.recorder.now(), status);
        }
        sleep(PAUSE).await;
    }
}

/// Follows the log of the controller `name` and records its votes.
pub(super) async fn votes(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let mut log = Log { path: lab.cluster().log_path(name), offset: 0 };
    loop {
        for line in log.new_lines().iter().filter(|line| line.contains(VOTE_LINE)) {
            // An accepted one is a leader's that a quorum has voted for: nobody's vote.
            if field(line, "accepted") != Some("false") {
                continue;
            }
            let number = |key| field(line, key).and_then(|text| text.parse().ok());
            let (Some(replica), Some(term), Some(candidate)) =
                (number("replica"), number("term"), number("candidate"))
            else {
                anyhow::bail!("{name} logs votes in another form: {line}");
            };
            // The replica may not have said yet to which cluster it belongs: that is filled in at the end.
            let (at, place, cluster) = (lab.recorder.now(), name.to_owned(), String::new());
            lab.recorder.vote(VoteGranted { at, replica, place, cluster, term, candidate });
        }
        sleep(LOG_PAUSE).await;
    }
}

fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// A log file that grows.
struct Log {
    path: PathBuf,
    offset: u64,
}

impl Log {
    /// The whole lines that were added since the last look.
    fn new_lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)
        });
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if read.is_err() || whole == 0 {
            return Vec::new();
        }
        self.offset += whole as u64;
        String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
    }
}

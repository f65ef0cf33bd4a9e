//! What a replica is started with.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::codec::{MAX_ENTRIES_PER_APPEND, SNAPSHOT_CHUNK_BYTES};
use crate::identity::MAX_NAME_BYTES;
use crate::tls::TlsFiles;

/// Entries between two snapshots, unless configured otherwise.
pub const DEFAULT_SNAPSHOT_EVERY: u64 = 20_000;
/// Entries that stay in the log below a snapshot, so that a replica that was away briefly needs none: this share of
/// what lies between two snapshots.
const KEPT_SHARE: u64 = 10;
/// How long a snapshot may take from the first chunk to its being installed.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 120_000;
/// Delays between attempts to replicate to an unreachable replica.
const BACKOFF: &str = "20ms 40ms 80ms ...200ms";

/// Longest address of a replica, in bytes: a host name, a colon and a port, with some room.
pub(crate) const MAX_ADDRESS_BYTES: usize = 261;

/// Everything that [`crate::Replica::start`] needs.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// The replica's own directory.
    pub data_dir: PathBuf,
    /// The pod's name.
    pub name: String,
    /// All configured replicas, this one included. It gives addresses, and who must answer at bootstrap; who is a
    /// member is decided by the replicated membership.
    pub peers: Vec<PeerAddress>,
    /// The replica's certificate, for dialling its peers.
    pub tls: TlsFiles,
    /// Raft's timers.
    pub timing: Timing,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
}

/// Where a replica is expected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    /// The pod's name, which is also in its certificate.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl PeerAddress {
    /// Whether it may get into the membership.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { name, address } = self;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(format!("a replica's name has 1 to {MAX_NAME_BYTES} bytes, this one {}", name.len()));
        }
        if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
            return Err(format!(
                "the address of {name} has {} bytes, and may have 1 to {MAX_ADDRESS_BYTES}",
                address.len()
            ));
        }
        Ok(())
    }
}

/// Raft's timers. A follower campaigns after `election_max` and a random part of the range without its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// The least random part.
    pub election_min: Duration,
    /// The largest random part; also the length of a leader's lease.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
        }
    }
}

impl ReplicaConfig {
    /// This replica's own place.
    pub(crate) fn own_address(&self) -> Result<&PeerAddress, String> {
        let own = self.peers.iter().find(|peer| peer.name == self.name);
        own.ok_or_else(|| format!("{} is not among the configured replicas", self.name))
    }

    /// All mistakes, in one text.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut mistakes = Vec::new();
        mistakes.extend(self.own_address().err());
        mistakes.extend(self.peers.iter().filter_map(|peer| peer.check().err()));
        let names: BTreeSet<_> = self.peers.iter().map(|peer| &peer.name).collect();
        let addresses: BTreeSet<_> = self.peers.iter().map(|peer| &peer.address).collect();
        if names.len() < self.peers.len() || addresses.len() < self.peers.len() {
            mistakes.push("two configured replicas have the same name or address".to_owned());
        }
        if self.snapshot_every == 0 {
            mistakes.push("snapshot_every is 0".to_owned());
        }
        mistakes.extend(self.raft().err());
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("; ")) }
    }

    /// openraft's configuration.
    pub(crate) fn raft(&self) -> Result<Arc<Config>, String> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "rds-csi".to_owned(),
            heartbeat_interval: millis(self.timing.heartbeat),
            election_timeout_min: millis(self.timing.election_min),
            election_timeout_max: millis(self.timing.election_max),
            // A restarted leader must not lead on without a vote: followers may hold committed entries that it never
            // flushed, and it would use their ids again.
            enable_leader_restore: Some(false),
            // A replica that was cut off must not depose a leader that serves everyone else.
            enable_pre_vote: Some(true),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.snapshot_every / KEPT_SHARE,
            purge_batch_size: 1,
            // Only a call that waits for a new learner to catch up reads it, and there is none here: who gets a
            // snapshot is decided by what is purged, and who is promoted by `membership`.
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES as u64,
            install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: MAX_ENTRIES_PER_APPEND,
            backoff: BACKOFF.to_owned(),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> ReplicaConfig {
        let peer = |name: &&str| PeerAddress { name: (*name).to_owned(), address: format!("{name}:1") };
        ReplicaConfig {
            data_dir: PathBuf::from("data"),
            name: "a".to_owned(),
            peers: names.iter().map(peer).collect(),
            tls: TlsFiles { ca: "ca".into(), cert: "cert".into(), key: "key".into() },
            timing: Timing::default(),
            snapshot_every: DEFAULT_SNAPSHOT_EVERY,
        }
    }

    #[test]
    fn mistakes_are_reported_together() {
        assert_eq!(config(&["a", "b", "c"]).check(), Ok(()));
        let mut bad = config(&["b", "b"]);
        bad.snapshot_every = 0;
        bad.timing.heartbeat = Duration::from_secs(9);
        bad.peers.push(PeerAddress { name: "c".to_owned(), address: "x".repeat(MAX_ADDRESS_BYTES + 1) });
        let mistakes = bad.check().unwrap_err();
        for part in
            ["not among", "the same name", "snapshot_every", "heartbeat", "the address of c has 262 bytes"]
        {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
    }

    #[test]
    fn a_restarted_leader_never_leads_on_without_a_vote() {
        assert_eq!(config(&["a"]).raft().unwrap().enable_leader_restore, Some(false));
    }
}

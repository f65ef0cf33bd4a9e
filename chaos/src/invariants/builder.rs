//! Hand-made histories for the invariants' tests: one volume, `v`, unless another is named. Times are in milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{
    Answer, ApplianceChange, Connection, ConnectionChange, Decided, FaultRecord, FinalRead, History,
    Installed, LedgerFact, Micros, Mutation, Operation, Request, StateHash, Transition, VolumeRead,
    VoteGranted,
};

/// The volume.
pub(super) const V: &str = "v";
/// Its size in bytes.
pub(super) const SIZE: u64 = 4096;

const MICROS_PER_MS: Micros = 1_000;

/// A history in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Run(History);

pub(super) fn create(size_bytes: u64, shared: bool) -> Request {
    Request::Create { volume: V.to_owned(), size_bytes, shared }
}

pub(super) fn delete() -> Request {
    Request::Delete { volume: V.to_owned() }
}

pub(super) fn publish(node: &str) -> Request {
    Request::Publish { volume: V.to_owned(), node: node.to_owned() }
}

pub(super) fn unpublish(node: &str) -> Request {
    Request::Unpublish { volume: V.to_owned(), node: node.to_owned() }
}

pub(super) fn expand(size_bytes: u64) -> Request {
    Request::Expand { volume: V.to_owned(), size_bytes }
}

pub(super) fn read() -> Request {
    Request::Read { volume: V.to_owned() }
}

/// What a read finds where the volume has this size and is on these nodes.
pub(super) fn on(size_bytes: u64, nodes: &[&str]) -> Answer {
    Answer::Read(Some(volume_read(size_bytes, nodes)))
}

pub(super) fn published(generation: u64) -> Answer {
    Answer::Published(BTreeMap::from([("generation".to_owned(), generation.to_string())]))
}

pub(super) fn unknown() -> Answer {
    Answer::Unknown("Unavailable".to_owned())
}

pub(super) fn refused() -> Answer {
    Answer::Refused("FailedPrecondition".to_owned())
}

pub(super) fn volume_read(size_bytes: u64, nodes: &[&str]) -> VolumeRead {
    VolumeRead { size_bytes, nodes: nodes.iter().map(|node| (*node).to_owned()).collect() }
}

impl Run {
    /// A volume for one node, made before anything else.
    pub(super) fn with_volume() -> Self {
        Self::default().asked(0, 1, create(SIZE, false), Answer::Ok)
    }

    /// A volume for two nodes, made before anything else.
    pub(super) fn with_shared_volume() -> Self {
        Self::default().asked(0, 1, create(SIZE, true), Answer::Ok)
    }

    pub(super) fn history(self) -> History {
        self.0
    }

    /// A call of a client of its own.
    pub(super) fn asked(mut self, started: u64, ended: u64, request: Request, answer: Answer) -> Self {
        let client = self.0.operations.len() as u32;
        let (started, ended) = (started * MICROS_PER_MS, Some(ended * MICROS_PER_MS));
        self.0.operations.push(Operation { client, started, ended, request, answer });
        self
    }

    /// A call that was never answered.
    pub(super) fn asked_in_vain(mut self, started: u64, request: Request) -> Self {
        self = self.asked(started, started, request, unknown());
        if let Some(last) = self.0.operations.last_mut() {
            last.ended = None;
        }
        self
    }

    /// The last call, as this client's.
    pub(super) fn by(mut self, client: u32) -> Self {
        if let Some(last) = self.0.operations.last_mut() {
            last.client = client;
        }
        self
    }

    fn fact(mut self, at: u64, ledger_ms: u64, fact: LedgerFact) -> Self {
        self.0.ledger.push(Transition { at: at * MICROS_PER_MS, ledger_ms, volume: V.to_owned(), fact });
        self
    }

    pub(super) fn attach(self, at: u64, node: &str, generation: u64) -> Self {
        self.fact(at, at, LedgerFact::Attached { node: node.to_owned(), generation })
    }

    pub(super) fn revoke(self, at: u64, node: &str, generation: u64) -> Self {
        self.fact(at, at, LedgerFact::Revoking { node: node.to_owned(), generation })
    }

    pub(super) fn detach(self, at: u64, node: &str, generation: u64) -> Self {
        self.fact(at, at, LedgerFact::Detached { node: node.to_owned(), generation })
    }

    pub(super) fn migrate(
        self,
        at: u64,
        migration: u64,
        source: &str,
        target: &str,
        timeout_ms: u64,
    ) -> Self {
        let (source, target) = (source.to_owned(), target.to_owned());
        self.fact(at, at, LedgerFact::MigrationStarted { migration, source, target, timeout_ms })
    }

    pub(super) fn overdue(self, at: u64, ledger_ms: u64, migration: u64) -> Self {
        self.fact(at, ledger_ms, LedgerFact::MigrationOverdue { migration })
    }

    pub(super) fn reap(self, at: u64, migration: u64, node: &str) -> Self {
        self.fact(at, at, LedgerFact::Reaping { migration, node: node.to_owned() })
    }

    pub(super) fn migrated(self, at: u64, migration: u64, outcome: &str) -> Self {
        self.fact(at, at, LedgerFact::MigrationEnded { migration, outcome: outcome.to_owned() })
    }

    /// As the fact before it, but the ledger's clock says this.
    pub(super) fn by_ledger(mut self, ledger_ms: u64) -> Self {
        if let Some(last) = self.0.ledger.last_mut() {
            last.ledger_ms = ledger_ms;
        }
        self
    }

    pub(super) fn wire(mut self, at: u64, node: &str, change: Connection) -> Self {
        let (node, volume) = (node.to_owned(), V.to_owned());
        self.0.connections.push(ConnectionChange { at: at * MICROS_PER_MS, node, volume, change });
        self
    }

    pub(super) fn mutate(mut self, fence: Option<(u64, u64)>, volume: &str, change: ApplianceChange) -> Self {
        let at = self.0.appliance.len() as u64 * MICROS_PER_MS;
        let (term, sequence) = (fence.map(|fence| fence.0), fence.map(|fence| fence.1));
        self.0.appliance.push(Mutation { at, term, sequence, volume: volume.to_owned(), change });
        self
    }

    /// A mutation without a fence at this time.
    pub(super) fn mutate_at(mut self, at: u64, volume: &str, change: ApplianceChange) -> Self {
        self = self.mutate(None, volume, change);
        if let Some(last) = self.0.appliance.last_mut() {
            last.at = at * MICROS_PER_MS;
        }
        self
    }

    pub(super) fn decided(mut self, at: u64, term: u64) -> Self {
        self.0.decided.push(Decided { at: at * MICROS_PER_MS, term });
        self
    }

    pub(super) fn hash(mut self, replica: u64, index: u64, hash: &str) -> Self {
        self.0.hashes.push(StateHash { replica, index, hash: hash.to_owned() });
        self
    }

    pub(super) fn vote(
        mut self,
        at: u64,
        replica: u64,
        place: &str,
        cluster: &str,
        term: u64,
        candidate: u64,
    ) -> Self {
        let (place, cluster) = (place.to_owned(), cluster.to_owned());
        let at = at * MICROS_PER_MS;
        self.0.votes.push(VoteGranted { at, replica, place, cluster, term, candidate });
        self
    }

    pub(super) fn fault(mut self, at: u64, healed: Option<u64>, target: &str, installed: Installed) -> Self {
        let (at, healed) = (at * MICROS_PER_MS, healed.map(|healed| healed * MICROS_PER_MS));
        let (kind, target) = ("a fault".to_owned(), target.to_owned());
        self.0.faults.push(FaultRecord {
            at,
            healed,
            kind,
            target,
            installed,
            in_migration: true,
            hit_leader: true,
        });
        self
    }

    /// The end: the volume of [`SIZE`] on these nodes, on the appliance too, and connected there.
    pub(super) fn ends(mut self, at: u64, nodes: &[&str]) -> Self {
        self.0.end = Some(FinalRead {
            at: at * MICROS_PER_MS,
            ledger: BTreeMap::from([(V.to_owned(), volume_read(SIZE, nodes))]),
            appliance: BTreeMap::from([(V.to_owned(), (SIZE, true))]),
            connected: nodes.iter().map(|node| ((*node).to_owned(), V.to_owned())).collect(),
            clusters: BTreeSet::from(["one".to_owned()]),
        });
        self
    }

    /// Changes the end.
    pub(super) fn but(mut self, change: impl FnOnce(&mut FinalRead)) -> Self {
        change(self.0.end.get_or_insert_default());
        self
    }
}

/// A shared volume moves from a to b, and all is well.
pub(super) fn good_migration() -> Run {
    Run::with_shared_volume()
        .asked(10, 20, publish("a"), published(1))
        .attach(15, "a", 1)
        .wire(21, "a", Connection::Connected)
        .wire(22, "a", Connection::Opened)
        .asked(30, 40, publish("b"), published(2))
        .attach(35, "b", 2)
        .migrate(35, 1, "a", "b", 30_000)
        .wire(41, "b", Connection::Connected)
        .wire(42, "b", Connection::Opened)
        .wire(50, "a", Connection::Closed)
        .wire(51, "a", Connection::Disconnected)
        .asked(52, 60, unpublish("a"), Answer::Ok)
        .revoke(55, "a", 1)
        .detach(55, "a", 1)
        .migrated(55, 1, "success")
        .asked(61, 62, read(), on(SIZE, &["b"]))
        .mutate(Some((1, 1)), V, ApplianceChange::Created)
        .mutate(Some((1, 1)), V, ApplianceChange::Exported)
        .ends(70, &["b"])
}

#[track_caller]
pub(super) fn assert_none(found: Vec<String>) {
    assert_eq!(found, Vec::<String>::new());
}

/// One violation, which says this.
#[track_caller]
pub(super) fn assert_one(found: Vec<String>, text: &str) {
    assert!(found.len() == 1 && found[0].contains(text), "not one of {text:?}: {found:?}");
}

//! Plain facts in, answers out.
//!
//! One table a kind, fed by [`Change`]s: a listing replaces the whole table once it is complete, so that what was
//! deleted while nobody watched is gone as well. While the watch of a kind is broken its facts stay, but nothing that
//! decides is answered from them.

mod answers;
mod facts;
mod hotplug;
mod migration;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

pub use answers::{AttachmentSeen, ClaimRef, NodeSeen, PodSeen, Users};
pub(crate) use facts::{
    AttachmentFact, ClaimFact, Fact, HotplugFact, Key, MigrationFact, MigrationPhase, NamespaceFact,
    NodeFact, PodFact, PodOwner, SettingsFact, VmiFact, VmiPhase, VmimFact, VolumeFact,
};
pub use migration::{DEFAULT_COMPLETION_SECONDS_PER_GIB, MigrationSeen, VmSeen};

/// Facts that are kept of one kind. A kind with more objects is unknown rather than half known.
pub const MAX_FACTS_OF_A_KIND: usize = 200_000;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nodes: there or not, and their taints.
    Node,
    /// PersistentVolumes of this driver.
    PersistentVolume,
    /// PersistentVolumeClaims: names, UIDs, and whether they are bound.
    Claim,
    /// VolumeAttachments.
    VolumeAttachment,
    /// Pods that use a claim, and virt-launcher pods.
    Pod,
    /// VirtualMachineInstances.
    Vmi,
    /// VirtualMachineInstanceMigrations.
    Vmim,
    /// The KubeVirt object: the cluster's migration settings.
    KubeVirt,
    /// Namespaces: there or not, and terminating.
    Namespace,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Node,
        Self::PersistentVolume,
        Self::Claim,
        Self::VolumeAttachment,
        Self::Pod,
        Self::Vmi,
        Self::Vmim,
        Self::KubeVirt,
        Self::Namespace,
    ];

    /// The kind's name in the API, in the plural.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::PersistentVolume => "persistentvolumes",
            Self::Claim => "persistentvolumeclaims",
            Self::VolumeAttachment => "volumeattachments",
            Self::Pod => "pods",
            Self::Vmi => "virtualmachineinstances",
            Self::Vmim => "virtualmachineinstancemigrations",
            Self::KubeVirt => "kubevirts",
            Self::Namespace => "namespaces",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}

/// How good the facts of one kind are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// There is no Kubernetes.
    NoKubernetes,
    /// The first listing is not complete.
    NotListed,
    /// Listed, and watched since.
    Current {
        /// The facts are at least as new as this moment, at which the last complete listing began.
        as_of: Instant,
    },
    /// The watch failed, or the first listing did; it is tried again.
    Broken {
        /// Since when.
        since: Instant,
        /// What the API server or the connection said.
        reason: String,
    },
    /// The API server does not know the kind: there are no such objects. It is looked for again.
    NotInstalled {
        /// The last time that it was looked for.
        as_of: Instant,
    },
}

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The driver runs without Kubernetes.
    #[error("there is no Kubernetes")]
    NoKubernetes,
    /// The first listing is not complete.
    #[error("{0} are not listed yet")]
    NotListed(Kind),
    /// The watch is broken.
    #[error("the watch of {kind} is broken: {reason}")]
    Broken {
        /// What is not watched.
        kind: Kind,
        /// Since when.
        since: Instant,
        /// What the API server or the connection said.
        reason: String,
    },
    /// The API server does not have the kind.
    #[error("the API server has no {0}")]
    NotInstalled(Kind),
    /// What is known is older than what was asked for.
    #[error("{0} were not listed since the moment asked for")]
    TooOld(Kind),
    /// The facts are there, and do not say.
    #[error("{0}")]
    Unclear(String),
}

/// What is observed of something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Answer<T> {
    /// It is there.
    Known(T),
    /// It is known not to be there.
    Absent,
    /// It may be there or not.
    Unknown(Why),
}

impl<T> Answer<T> {
    /// What is known to be there.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    fn of(found: Result<Option<T>, Why>) -> Self {
        match found {
            Ok(Some(value)) => Self::Known(value),
            Ok(None) => Self::Absent,
            Err(why) => Self::Unknown(why),
        }
    }
}

/// A change of what is observed of one kind.
#[derive(Debug)]
pub(crate) enum Change<F> {
    /// A listing begins.
    ListingBegins(Instant),
    /// It has this object.
    Listed(F),
    /// It is complete.
    ListingEnds,
    /// An object is there, as it is now.
    Is(F),
    /// An object is gone.
    Gone(Key),
    /// The watch or the listing failed.
    Broke(Instant, String),
    /// The API server does not have the kind.
    NotInstalled(Instant),
}

/// A listing that is not complete.
#[derive(Debug, Clone)]
struct Listing<F> {
    began: Instant,
    facts: BTreeMap<Key, F>,
}

/// The facts of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Table<F> {
    kind: Kind,
    facts: BTreeMap<Key, F>,
    listing: Option<Listing<F>>,
    health: Health,
    /// Whether the facts were ever complete.
    was_listed: bool,
}

impl<F: Fact> Table<F> {
    fn new(kind: Kind) -> Self {
        Self { kind, facts: BTreeMap::new(), listing: None, health: Health::NotListed, was_listed: false }
    }

    /// Takes a change in; says whether an answer may be another now.
    pub(crate) fn apply(&mut self, change: Change<F>) -> bool {
        match change {
            Change::ListingBegins(began) => {
                self.listing = Some(Listing { began, facts: BTreeMap::new() });
                return false;
            }
            Change::Listed(fact) => {
                if let Some(listing) = &mut self.listing {
                    // One more than the bound says that it is exceeded.
                    if listing.facts.len() <= MAX_FACTS_OF_A_KIND {
                        listing.facts.insert(fact.key(), fact);
                    }
                }
                return false;
            }
            Change::ListingEnds => self.end_listing(),
            Change::Is(fact) => {
                self.facts.insert(fact.key(), fact);
                self.check_bound();
            }
            Change::Gone(key) => {
                self.facts.remove(&key);
            }
            Change::Broke(at, reason) => self.break_at(at, reason),
            Change::NotInstalled(as_of) => {
                self.listing = None;
                if self.was_listed {
                    // An API server that starts may deny a kind that it has.
                    self.break_at(as_of, "the API server no longer has the kind".to_owned());
                } else {
                    self.health = Health::NotInstalled { as_of };
                }
            }
        }
        true
    }

    fn end_listing(&mut self) {
        let Some(listing) = self.listing.take() else { return };
        self.facts = listing.facts;
        self.was_listed = true;
        self.health = Health::Current { as_of: listing.began };
        self.check_bound();
    }

    fn break_at(&mut self, at: Instant, reason: String) {
        self.listing = None;
        let since = match &self.health {
            Health::Broken { since, .. } => *since,
            Health::NoKubernetes
            | Health::NotListed
            | Health::Current { .. }
            | Health::NotInstalled { .. } => at,
        };
        self.health = Health::Broken { since, reason };
    }

    fn check_bound(&mut self) {
        if self.facts.len() <= MAX_FACTS_OF_A_KIND {
            return;
        }
        self.facts.clear();
        self.was_listed = false;
        if let Health::Current { as_of } = &self.health {
            let reason = format!("there are more than {MAX_FACTS_OF_A_KIND}");
            self.health = Health::Broken { since: *as_of, reason };
        }
    }

    /// The facts, if they are complete and watched.
    fn current(&self) -> Result<&BTreeMap<Key, F>, Why> {
        match &self.health {
            Health::Current { .. } => Ok(&self.facts),
            Health::NoKubernetes => Err(Why::NoKubernetes),
            Health::NotListed => Err(Why::NotListed(self.kind)),
            Health::Broken { since, reason } => {
                Err(Why::Broken { kind: self.kind, since: *since, reason: reason.clone() })
            }
            Health::NotInstalled { .. } => Err(Why::NotInstalled(self.kind)),
        }
    }

    /// The facts, if they were listed at or after `moment` and are watched since.
    fn newer_than(&self, moment: Instant) -> Result<&BTreeMap<Key, F>, Why> {
        let facts = self.current()?;
        match &self.health {
            Health::Current { as_of } if *as_of >= moment => Ok(facts),
            Health::Current { .. }
            | Health::NoKubernetes
            | Health::NotListed
            | Health::Broken { .. }
            | Health::NotInstalled { .. } => Err(Why::TooOld(self.kind)),
        }
    }

    /// The facts, if they were complete at some time: for what does not change, or only advises. What is not among
    /// them may be there all the same, unless they are current.
    fn last_known(&self) -> Result<&BTreeMap<Key, F>, Why> {
        if self.was_listed { Ok(&self.facts) } else { self.current() }
    }
}

/// A table, whatever it keeps.
trait AnyTable {
    fn health(&self) -> &Health;
    fn set_health(&mut self, health: Health);
    fn len(&self) -> usize;
}

impl<F> AnyTable for Table<F> {
    fn health(&self) -> &Health {
        &self.health
    }

    fn set_health(&mut self, health: Health) {
        self.was_listed = match &health {
            Health::Current { .. } => true,
            Health::Broken { .. } => self.was_listed,
            Health::NoKubernetes | Health::NotListed | Health::NotInstalled { .. } => false,
        };
        self.health = health;
    }

    fn len(&self) -> usize {
        self.facts.len()
    }
}

/// What is known of the cluster.
#[derive(Debug, Clone)]
pub struct Index {
    pub(crate) nodes: Table<NodeFact>,
    pub(crate) volumes: Table<VolumeFact>,
    pub(crate) claims: Table<ClaimFact>,
    pub(crate) attachments: Table<AttachmentFact>,
    pub(crate) pods: Table<PodFact>,
    pub(crate) vmis: Table<VmiFact>,
    pub(crate) vmims: Table<VmimFact>,
    pub(crate) settings: Table<SettingsFact>,
    pub(crate) namespaces: Table<NamespaceFact>,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index that knows nothing yet.
    pub fn new() -> Self {
        Self {
            nodes: Table::new(Kind::Node),
            volumes: Table::new(Kind::PersistentVolume),
            claims: Table::new(Kind::Claim),
            attachments: Table::new(Kind::VolumeAttachment),
            pods: Table::new(Kind::Pod),
            vmis: Table::new(Kind::Vmi),
            vmims: Table::new(Kind::Vmim),
            settings: Table::new(Kind::KubeVirt),
            namespaces: Table::new(Kind::Namespace),
        }
    }

    /// An index that never knows anything, as there is no Kubernetes.
    pub fn without_kubernetes() -> Self {
        let mut index = Self::new();
        for kind in Kind::ALL {
            index.set_health(kind, Health::NoKubernetes);
        }
        index
    }

    /// How good the facts of `kind` are.
    pub fn health(&self, kind: Kind) -> &Health {
        self.table(kind).health()
    }

    /// Makes the facts of `kind` as good as that: for tests and simulations.
    pub fn set_health(&mut self, kind: Kind, health: Health) {
        let table: &mut dyn AnyTable = match kind {
            Kind::Node => &mut self.nodes,
            Kind::PersistentVolume => &mut self.volumes,
            Kind::Claim => &mut self.claims,
            Kind::VolumeAttachment => &mut self.attachments,
            Kind::Pod => &mut self.pods,
            Kind::Vmi => &mut self.vmis,
            Kind::Vmim => &mut self.vmims,
            Kind::KubeVirt => &mut self.settings,
            Kind::Namespace => &mut self.namespaces,
        };
        table.set_health(health);
    }

    /// How many facts are kept of `kind`.
    pub fn facts_of(&self, kind: Kind) -> usize {
        self.table(kind).len()
    }

    fn table(&self, kind: Kind) -> &dyn AnyTable {
        match kind {
            Kind::Node => &self.nodes,
            Kind::PersistentVolume => &self.volumes,
            Kind::Claim => &self.claims,
            Kind::VolumeAttachment => &self.attachments,
            Kind::Pod => &self.pods,
            Kind::Vmi => &self.vmis,
            Kind::Vmim => &self.vmims,
            Kind::KubeVirt => &self.settings,
            Kind::Namespace => &self.namespaces,
        }
    }
}

#[cfg(test)]
mod tests;

//! One of the replicas that keep the ledger: consensus between them, and the handle through which everyone else in
//! the process proposes commands and reads the state (DESIGN.md, "Time", "Requests", "Replicas", "Security").
//!
//! Life: [`Replica::start`] opens the storage and starts openraft. The caller serves [`Replica::peer_service`]; an
//! empty replica then forms a cluster with the others or joins theirs, by itself. From there on any replica
//! decides ([`Replica::propose`]) and reads ([`Replica::read`]) through the leader. [`Replica::shutdown`] hands the
//! leadership over first. When [`Replica::failed`] resolves, the process has to end.
//!
//! | file | subject |
//! |---|---|
//! | `replica` | the handle, start and stop |
//! | `leader` | when this replica leads, and the ledger's clock while it does |
//! | `forward` | finding the leader and asking it, again and again until the deadline |
//! | `attempts` | which attempts of askers come too late |
//! | `bootstrap` | what a replica does about its place in a cluster: form, join, wait, notice its removal |
//! | `hand_over` | giving leadership away |
//! | `membership` | changes of the membership, on the leader |
//! | `report` | what replicas tell each other about themselves |
//! | `service`, `network`, `peers`, `codec` | the peer protocol: its server, its clients |
//! | `identity`, `tls` | who calls |
//! | `status` | what the person on call sees |

mod bootstrap;
mod clock;
mod codec;
mod config;
mod consensus;
mod error;
mod forward;
mod hand_over;
mod identity;
mod leader;
mod membership;
mod network;
mod peers;
mod replica;
mod report;
mod roll;
mod service;
mod status;
#[cfg(test)]
mod testing;
mod tls;
mod turns;

pub use crate::tls::{SERVER_NAME, TlsFiles};
pub use ::tls::TlsError;
#[doc(hidden)]
pub use clock::LedgerClock;
pub use clock::{MonotonicClock, SystemClock};
pub use config::{DEFAULT_SNAPSHOT_EVERY, PeerAddress, ReplicaConfig, Timing};
pub use error::{Failure, MembershipError, ProposeError, ReadError, StartError};
pub use forward::LeaderPlace;
pub use hand_over::ask_to_hand_over;
pub use identity::{RequireRole, Role, RoleKind, caller};
pub use leader::Leadership;
pub use replica::Replica;
pub use service::{PeerEndpoint, PeerService};
pub use status::{MemberStatus, ReplicaRole, ReplicaStatus};

/// What decides without doing anything: for the simulator, which runs the same.
#[doc(hidden)]
pub mod cores {
    pub use crate::bootstrap::{Course, decide};
    pub use crate::membership::{Changes, View};
    pub use crate::report::{Report, known};
    pub use crate::turns::Turns;
}

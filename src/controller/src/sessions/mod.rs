//! The nodes' sessions (DESIGN.md, "Node sessions", "Unpublish", "Proof" (a)): what the leader knows of the nodes at
//! every moment, and how it has them cut what is to go.
//!
//! A node plugin dials the controllers and says what it has connected, who uses it and what it is about to connect, on
//! each change and regularly. Only the leader in office listens. What a node says is one of three things about each
//! volume: connected, absent, or not to be seen; and of a node that says nothing for [`core::SILENCE`], or whose
//! session is lost, everything is unknown.
//!
//! | The ledger has | The node says | The leader |
//! |---|---|---|
//! | an attachment that is being revoked | absent, later than the ledger heard of it | proposes that as the proof |
//! | | connected, used by nobody | orders the cut, again every few seconds |
//! | | connected and used | does nothing but say so, once |
//! | no attachment, and knows the volume | connected, in a second look too | says so, and orders the cut if nobody uses it |
//! | a standing attachment, or not the volume | whatever | nothing |
//!
//! Nothing here decides alone: the ledger orders a proof against permissions to connect, and a node that is told to cut
//! asks the ledger before it does, and keeps what is held.
//!
//! | file | subject |
//! |---|---|
//! | `core` | the knowledge, and what follows from it: no IO, no clock |
//! | `report`, `sight` | what goes in, what comes out |
//! | `shell` | the one place with a lock, a clock and tasks |
//! | `stream` | a node's session on the wire |
//! | `recheck` | the token that a session was begun with, as long as it lasts |
//! | `leader` | how the other replicas ask |
//!
//! Life cycle: the shell's task follows the replica's leadership and its ledger, and ends with the controller; the
//! knowledge lasts as long as an office.

pub(crate) mod core;
mod leader;
mod recheck;
mod report;
mod shell;
mod sight;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use leader::{AskLeader, LeaderService};
pub use report::Report;
pub(crate) use shell::NodeSessions;
pub(crate) use sight::Told;
pub use sight::{Look, Sight, Usage};
pub(crate) use stream::SessionStream;

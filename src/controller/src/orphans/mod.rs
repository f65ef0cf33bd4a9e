//! Orphans: what is on the appliance and nobody's. The leader looks for them, tells of them, and removes some.
//!
//! A disk in a slot `pvc-...`, or a file named like a volume's without a disk, is an orphan if neither the ledger nor a
//! PersistentVolume has it. The driver makes no snapshots, and what is named otherwise is never looked at. On an
//! appliance that several installations share, the volumes of one look like orphans to the other: so an orphan is
//! removable only if this ledger recorded its making, or if it lies under a path that is declared exclusive.
//!
//! - `judge`: the decision, a pure table
//! - `book`: since when each was seen, in this office
//! - `pass`: one look, and the removals after it
//! - `witnesses`: who may need something, as the leader knows
//! - `shell`: when it is looked, and who asks
//!
//! Life cycle: the shell's task follows the leadership; what it remembers lasts as long as an office. Removals go through
//! the same instance of the backend as the executor's changes, so that one row of fence numbers orders both: see
//! [`backend::Backend::remove_unneeded`].

mod book;
mod judge;
mod pass;
mod shell;
#[cfg(test)]
mod tests;
mod witnesses;

pub(crate) use shell::{Orphans, Shell};
pub(crate) use witnesses::LeadersWitnesses;

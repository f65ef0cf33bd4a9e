//! The simulated appliance's own log: every change that took effect, in order.
//!
//! Tests compare it with what the driver believes. A script that changed nothing leaves no entry.

use serde::{Deserialize, Serialize};

/// One change that a script made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// A disk was added.
    DiskAdded {
        /// Its slot.
        slot: String,
        /// Its size, in bytes.
        size_bytes: u64,
        /// Whether it was exported at once.
        exported: bool,
    },
    /// Properties of a disk were set.
    DiskSet {
        /// Its slot.
        slot: String,
        /// Its size from now on, in bytes.
        size_bytes: u64,
        /// Whether it is exported from now on.
        exported: bool,
    },
    /// A disk was removed; its file stays.
    DiskRemoved {
        /// Its slot.
        slot: String,
    },
    /// A file was removed.
    FileRemoved {
        /// Its name, without the leading `/`.
        name: String,
    },
    /// A script object was added or changed.
    ScriptSet {
        /// Its name.
        name: String,
        /// Its text.
        source: String,
    },
    /// A script object was removed.
    ScriptRemoved {
        /// Its name.
        name: String,
    },
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When, in ms since the simulator started.
    pub at_ms: u64,
    /// The number that the same script stored in a script object before, if it did: the driver's fence.
    pub fence: Option<u64>,
    /// What changed.
    pub effect: Effect,
}

/// Turns the effects of one script into entries.
pub(crate) fn entries(at_ms: u64, effects: Vec<Effect>) -> Vec<LogEntry> {
    let mut fence = None;
    effects
        .into_iter()
        .map(|effect| {
            if let Effect::ScriptSet { source, .. } = &effect {
                fence = source.parse().ok();
            }
            LogEntry { at_ms, fence, effect }
        })
        .collect()
}

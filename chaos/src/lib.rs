//! Chaos: faults while migrations run, and invariants that are checked on what was recorded.
//!
//! `history` is what a run records, in the simulator or with real processes; `invariants` judge it and know nothing
//! of the code that made it. `sim` is the simulator, `processes` the harness of real ones; `bugs` shows that they see.

pub mod bugs;
pub mod history;
pub mod invariants;
pub mod processes;
pub mod sim;

/// How long a side of an overdue migration has to be stale before it is taken: short, where leaders die every few seconds.
const REAP_AFTER_SECONDS: u32 = 1;

//! Replicas over real sockets with real certificates, in one process: each has a runtime of its own, which is taken
//! away to crash it.

// A test fails by a panic, its helpers too; clippy sees only the tests themselves.
#![allow(clippy::unwrap_used)]

mod cluster;
mod deadlines;
mod hand_over;
mod harness;
mod late;
mod lost_disks;
mod membership;
mod rotation;
mod security;
mod time;

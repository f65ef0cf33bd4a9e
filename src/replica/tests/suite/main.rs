//! Replicas over real sockets with real certificates, in one process: each has a runtime of its own, which is taken
//! away to crash it.

mod cluster;
mod harness;
mod lost_disks;
mod membership;
mod security;
mod time;

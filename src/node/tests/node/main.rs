//! The node plugin from outside: kubelet's calls on its real socket, scripted controllers behind it.
//!
//! `loop_device` and `loop_file_systems` need root, loop devices, e2fsprogs and xfsprogs, and fail without them.

// Test code may panic wherever something is not as it has to be.
#![allow(clippy::unwrap_used)]

mod common;
mod condition;
mod failed_stage;
mod life_cycle;
mod loop_device;
mod loop_file_systems;
mod ownership;
mod plugin;
mod reconcile;
mod registration;
mod session;
mod stale;

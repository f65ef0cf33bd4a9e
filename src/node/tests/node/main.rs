//! The node plugin from outside: kubelet's calls on its real socket, scripted controllers behind it.
//!
//! `loop_device` needs root, loop devices, e2fsprogs and xfsprogs, and fails without them.

// Test code may panic wherever something is not as it has to be.
#![allow(clippy::unwrap_used)]

mod common;
mod failed_stage;
mod life_cycle;
mod loop_device;
mod plugin;
mod registration;

//! What the driver sees of a cluster: answers from objects in the API's form, and watches, events and token reviews
//! against a simulated API server on the loopback address.

// A test fails by a panic, its helpers too; clippy sees only the tests themselves.
#![allow(clippy::unwrap_used)]

mod answers;
mod cluster;
mod events;
mod hotplug_facts;
mod hotplug_holds;
mod migrations;
mod server;
mod tokens;
mod watching;
mod webhook;

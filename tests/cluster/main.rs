//! Stories of a cluster of real processes, seen from outside: sockets, signals, and the appliance's state.
//!
//! Each story is a test with a cluster of its own; the fabric is the fake one, so that no root is needed
//! but for `names`.
//! - `program`: the program as a newcomer runs it, its scenario too
//! - `input`: bad input is refused before it goes anywhere
//! - `appliance`, `quorum`: one of them is away
//! - `executor`: the leader dies in the middle of changing the appliance
//! - `restarts`: the leader dies and is back at once, under load
//! - `wiped`: a replica loses its disk
//! - `hotplug`: the webhook for KubeVirt's attachment pods, and what it holds; the API server is simulated
//! - `hand_over`: the leader is asked to leave, or to hand over and stay
//! - `certificates`: made as Secrets, and lived on
//! - `rotation`: certificates and their authority are replaced while all run
//! - `names`: replicas that know each other by names which mean nothing yet
//! - `roles`: who may call what
//! - `migrations`: past their time, as the program's own scenarios tell it
//! - `detach`: a person takes a volume from a node that is off
//! - `metrics`: the table in the docs is what is served
//! - `sessions`: what nodes have connected and hold, and how it is cut
//! - `kubernetes`: what pods, VMs and migrations decide, and the events on claims; the API server is simulated
//! - `orphans`: what is on the appliance and nobody's
//! - `off`: nodes that Kubernetes says are off
//! - `recover`: everything is lost, or another driver was there before
//! - `topology`: an appliance that not every node reaches, and what a class says

mod appliance;
mod certificates;
mod detach;
mod executor;
mod hand_over;
mod hotplug;
mod input;
mod kubernetes;
mod metrics;
mod migrations;
mod names;
mod off;
mod orphans;
mod program;
mod quorum;
mod recover;
mod restarts;
mod roles;
mod rotation;
mod sessions;
mod topology;
mod wiped;

//! The Container Storage Interface's edge, shared by the controller and the node plugin.
//!
//! A request comes in on a unix socket ([`Socket`], [`CsiServer`]), is turned into types that cannot be wrong
//! ([`parse`]) and is answered by a service that lives elsewhere; what the service decided becomes a gRPC code in
//! one place ([`status`]). The Identity service is the same for both programs and lives here ([`PluginIdentity`]).

pub mod context;
mod deadline;
mod identity;
mod mkfs;
pub mod parse;
mod requests;
mod server;
mod socket;
pub mod status;
mod topology;

pub use deadline::caller_timeout;
pub use identity::{DRIVER_NAME, PluginIdentity};
pub use server::{CsiServer, MAX_MESSAGE_BYTES, ServeError};
pub use socket::{Socket, SocketError, SocketPath};
pub use topology::Topology;

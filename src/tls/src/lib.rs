//! Mutual TLS from files that may be replaced while the program runs (DESIGN.md, "Security").
//!
//! Life cycle: [`Tls::follow`] reads the files once, and fails if they cannot be used. From then on they are read again
//! every [`REREAD_INTERVAL`]; what has changed and can be used is taken for connections that are opened or accepted from
//! then on ([`Tls::channel`], [`Tls::incoming`]). Open connections live on as they are. What cannot be used, half
//! written for instance, is said in the log at each look, and the old stays in use.
//!
//! The files are compared by their content, not watched: Kubernetes replaces a mounted Secret by swapping a symbolic
//! link, of which a watch on the file sees nothing.

mod channel;
mod files;
mod follow;
mod incoming;

pub use files::{Files, OwnFiles, TlsError};
pub use follow::{Expiry, REREAD_INTERVAL, Tls};
pub use incoming::Callers;

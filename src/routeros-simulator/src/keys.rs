//! SSH keys for tests and for the cluster on one machine: ed25519, in OpenSSH's format.

use std::io;
use std::path::Path;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};

/// Makes a client key, writes it to `path` (readable by the owner only) and returns its public line.
pub fn generate_client_key(path: &Path) -> io::Result<String> {
    let key = generate()?;
    key.write_openssh_file(path, LineEnding::LF).map_err(io::Error::other)?;
    key.public_key().to_openssh().map_err(io::Error::other)
}

/// The key in `path`, made when the file is missing; without a path a new one.
pub(crate) fn host_key(path: Option<&Path>) -> io::Result<PrivateKey> {
    let Some(path) = path else { return generate() };
    if path.exists() {
        return PrivateKey::read_openssh_file(path).map_err(io::Error::other);
    }
    let key = generate()?;
    key.write_openssh_file(path, LineEnding::LF).map_err(io::Error::other)?;
    Ok(key)
}

pub(crate) fn generate() -> io::Result<PrivateKey> {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(io::Error::other)
}

//! The unix socket that kubelet and the sidecars connect to: CSI 1.12, "CSI Service Endpoint".
//!
//! Life cycle: a path is checked, a dead predecessor's socket is cleared away, the socket is bound, made private
//! and only then listens; the file is removed when the [`Socket`] goes, unless a successor has replaced it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;

/// Longest path that fits a socket's address with its terminating NUL, in bytes (`sockaddr_un`).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: u32 = 128;
/// How long a live predecessor may take to accept, in ms; a dead one refuses at once.
const PREDECESSOR_TIMEOUT_MS: u64 = 1_000;
/// Only the owner may connect: whoever can speak to the socket can detach volumes.
const SOCKET_MODE: u32 = 0o600;

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The endpoint's text is not a socket's path.
    #[error("endpoint {endpoint:?} {problem}; write unix:///path/to/csi.sock")]
    BadEndpoint {
        /// The text.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something else has the name.
    #[error("{} exists and is not a socket; it is left alone", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process answers there.
    #[error("another process serves {}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Where a socket is to be: an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// Parses `unix:///path`, `unix:/path` or `/path`.
    pub fn parse(endpoint: &str) -> Result<Self, SocketError> {
        let bad = |problem| SocketError::BadEndpoint { endpoint: endpoint.to_owned(), problem };
        let path =
            endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(bad("is not an absolute path"));
        }
        if path.ends_with('/') || path.contains('\0') {
            return Err(bad("is not a file's path"));
        }
        if path.len() > MAX_SOCKET_PATH_BYTES {
            return Err(bad("is longer than the 107 bytes that a socket's address can hold"));
        }
        Ok(Self(PathBuf::from(path)))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// A socket that listens. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

impl Socket {
    /// Listens at `path`, in place of a predecessor that has died; never in place of a live one.
    pub async fn bind(path: &SocketPath) -> Result<Self, SocketError> {
        let path = path.as_path();
        clear_away_dead_predecessor(path).await?;
        let failed = |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
        let socket = UnixSocket::new_stream().map_err(failed("create a socket for"))?;
        socket.bind(path).map_err(failed("bind"))?;
        let file = SocketFile::at(path).map_err(failed("inspect"))?;
        // Before it listens nobody can connect, so the umask leaves no gap.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed("restrict"))?;
        let listener = socket.listen(LISTEN_BACKLOG).map_err(failed("listen on"))?;
        Ok(Self { listener, file })
    }
}

async fn clear_away_dead_predecessor(path: &Path) -> Result<(), SocketError> {
    let failed = |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match timeout(Duration::from_millis(PREDECESSOR_TIMEOUT_MS), UnixStream::connect(path)).await {
        // A full backlog keeps a connection waiting: that process lives too.
        Ok(Ok(_)) | Err(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the dead socket"))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) => Err(failed("connect to")(error)),
    }
}

/// A socket's file, known by its inode.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own socket here meanwhile; that one is not ours to remove.
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_in(directory: &tempfile::TempDir) -> SocketPath {
        SocketPath::parse(&format!("unix://{}/csi.sock", directory.path().display())).unwrap()
    }

    #[test]
    fn endpoints_are_absolute_paths() {
        for text in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(SocketPath::parse(text).unwrap().as_path(), Path::new("/run/csi.sock"));
        }
        let long = format!("unix:///{}", "a".repeat(110));
        for text in
            ["", "unix://", "csi.sock", "unix://csi.sock", "tcp://127.0.0.1:1", "/run/", "/a\0b", &long]
        {
            assert!(SocketPath::parse(text).is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(&directory);
        let socket = Socket::bind(&path).await.unwrap();
        let mode = fs::metadata(path.as_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.as_path().exists());
    }

    #[tokio::test]
    async fn a_dead_predecessor_is_replaced_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(&directory);
        // A listener of the standard library leaves its file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(path.as_path()).unwrap());
        let socket = Socket::bind(&path).await.unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::InUse { .. })));
        assert!(UnixStream::connect(path.as_path()).await.is_ok());
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(&directory);
        fs::write(path.as_path(), "precious").unwrap();
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(path.as_path()).unwrap(), "precious");

        let link = SocketPath::parse(&format!("{}/link.sock", directory.path().display())).unwrap();
        std::os::unix::fs::symlink(path.as_path(), link.as_path()).unwrap();
        assert!(matches!(Socket::bind(&link).await, Err(SocketError::NotASocket { .. })));
    }

    #[tokio::test]
    async fn a_successors_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(&directory);
        let first = Socket::bind(&path).await.unwrap();
        fs::rename(path.as_path(), directory.path().join("moved")).unwrap();
        let second = Socket::bind(&path).await.unwrap();
        drop(first);
        assert!(path.as_path().exists());
        drop(second);
        assert!(!path.as_path().exists());
    }
}

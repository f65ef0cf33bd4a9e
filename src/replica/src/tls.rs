//! Mutual TLS from files: what the one gRPC server of a controller presents and asks for, and what clients present.
//!
//! Only replicas' certificates bear the DNS name [`SERVER_NAME`]: no node or operator can pose as a replica's server.
//! The files are read once, at start.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The DNS name in every replica's certificate; clients check it instead of the address that they dialled.
pub const SERVER_NAME: &str = "rds-csi";

/// Where the certificates are, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whom to believe.
    pub ca: PathBuf,
    /// Our certificate, and the intermediate ones.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A TLS file that cannot be read.
#[derive(Debug, Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct TlsError {
    path: PathBuf,
    source: std::io::Error,
}

/// For a server that lets in only callers with a certificate of our CA.
pub fn server_tls(files: &TlsFiles) -> Result<ServerTlsConfig, TlsError> {
    let ca = Certificate::from_pem(read(&files.ca)?);
    Ok(ServerTlsConfig::new().identity(identity(files)?).client_ca_root(ca))
}

/// For a client of such a server.
pub fn client_tls(files: &TlsFiles) -> Result<ClientTlsConfig, TlsError> {
    let ca = Certificate::from_pem(read(&files.ca)?);
    Ok(ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(ca).identity(identity(files)?))
}

fn identity(files: &TlsFiles) -> Result<Identity, TlsError> {
    Ok(Identity::from_pem(read(&files.cert)?, read(&files.key)?))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError { path: path.to_owned(), source })
}

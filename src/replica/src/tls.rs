//! Mutual TLS of replicas: which files, and the one name that every replica's certificate bears.
//!
//! Only replicas' certificates bear the DNS name [`SERVER_NAME`]: no node or operator can pose as a replica's server.
//! The files are followed while the replica runs ([`tls::Tls`]).

use std::path::PathBuf;

use tls::{Files, OwnFiles};

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

impl From<TlsFiles> for Files {
    fn from(TlsFiles { ca, cert, key }: TlsFiles) -> Self {
        Self { ca, own: Some(OwnFiles { cert, key }) }
    }
}

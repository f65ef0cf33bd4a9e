//! What the API server proves itself with, and whom it believes: made anew for each run.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

/// The name in the authority's certificate.
const AUTHORITY_NAME: &str = "kubernetes";

/// Files for the API server and its clients.
pub(crate) struct Authority {
    /// The authority's certificate.
    pub(crate) certificate: PathBuf,
    /// The API server's certificate.
    pub(crate) server_certificate: PathBuf,
    /// Its key.
    pub(crate) server_key: PathBuf,
    /// What ServiceAccounts' tokens are signed with.
    pub(crate) token_key: PathBuf,
    /// What they are checked with.
    pub(crate) token_public_key: PathBuf,
}

impl Authority {
    /// Makes them in `directory`, for an API server at `address`.
    pub(crate) fn make(directory: &Path, address: IpAddr) -> Result<Self> {
        fs::create_dir_all(directory).context("make the directory of certificates")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, AUTHORITY_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let mut server = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()])?;
        server.subject_alt_names.push(SanType::IpAddress(address));
        server.use_authority_key_identifier_extension = true;
        let (server_key, token_key) = (KeyPair::generate()?, KeyPair::generate()?);
        let signed = server.signed_by(&server_key, &Issuer::from_params(&params, &key))?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        Ok(Self {
            certificate: write("ca.crt", certificate)?,
            server_certificate: write("server.crt", signed.pem())?,
            server_key: write("server.key", server_key.serialize_pem())?,
            token_key: write("tokens.key", token_key.serialize_pem())?,
            token_public_key: write("tokens.pub", token_key.public_key_pem())?,
        })
    }
}

//! From PEM files to what rustls wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::{ConfigBuilder, ConfigSide, RootCertStore, WantsVerifier, WantsVersions};
use thiserror::Error;
use x509_parser::parse_x509_certificate;

/// The protocol above TLS: gRPC speaks HTTP/2.
const ALPN: &[u8] = b"h2";
/// That of webhooks: the API server offers them nothing else.
const WEBHOOK_ALPN: &[u8] = b"http/1.1";

/// Where the certificates are, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Whom to believe; several while one authority takes over from another.
    pub ca: PathBuf,
    /// What to show; a client may have nothing.
    pub own: Option<OwnFiles>,
}

/// What one shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFiles {
    /// The certificate, and the intermediate ones.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One does not hold what it should.
    #[error("{}: {problem}; it has to be {wanted} in PEM", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What belongs there.
        wanted: &'static str,
    },
    /// Certificate and key do not go together, or TLS cannot use them.
    #[error("{} and its key cannot be used: {source}", cert.display())]
    Own {
        /// The certificate.
        cert: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities cannot be used to check callers.
    #[error("{} cannot be used to check callers: {problem}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A server needs a certificate.
    #[error("a server needs a certificate of its own")]
    NoServer,
    /// An address that no connection can be made to.
    #[error("{address} is not host:port: {problem}")]
    Address {
        /// The address.
        address: String,
        /// Why.
        problem: String,
    },
}

/// The files' content.
#[derive(PartialEq, Eq)]
pub(crate) struct Content {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Content {
    pub(crate) fn read(files: &Files) -> Result<Self, TlsError> {
        let own = files.own.as_ref();
        Ok(Self {
            ca: read(&files.ca)?,
            own: own.map(|own| Ok::<_, TlsError>((read(&own.cert)?, read(&own.key)?))).transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Everything that connections are made with.
pub(crate) struct Configs {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) servers: Option<Servers>,
    /// When the last of the authorities ends, in seconds since 1970.
    pub(crate) ca_ends: i64,
    /// When the own certificate ends.
    pub(crate) own_ends: Option<i64>,
}

/// The same server for several callers.
pub(crate) struct Servers {
    /// For callers with a certificate of our authority only.
    pub(crate) certified: Arc<ServerConfig>,
    /// For callers without one as well.
    pub(crate) anyone: Arc<ServerConfig>,
    /// For callers that are not asked for one, over HTTP/1.1.
    pub(crate) unasked: Arc<ServerConfig>,
}

impl Configs {
    pub(crate) fn build(files: &Files, content: &Content) -> Result<Self, TlsError> {
        let authorities = certificates(&files.ca, &content.ca)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            let added = roots.add(authority.clone());
            added.map_err(|error| no_certificate(&files.ca, error.to_string()))?;
        }
        let ends = authorities.iter().map(|authority| end(&files.ca, authority));
        let ca_ends = ends.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
        let roots = Arc::new(roots);
        let client = versions(ClientConfig::builder_with_provider(provider()))?;
        let client = client.with_root_certificates(roots.clone());
        let Some((own, (cert, key))) = files.own.as_ref().zip(content.own.as_ref()) else {
            let client = speaking_http2(client.with_no_client_auth());
            return Ok(Self { client, servers: None, ca_ends, own_ends: None });
        };
        let chain = certificates(&own.cert, cert)?;
        let unfit = |source| TlsError::Own { cert: own.cert.clone(), source };
        let own_ends = chain.first().map(|leaf| end(&own.cert, leaf)).transpose()?;
        let key = private_key(&own.key, key)?;
        let client = client.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
        let server = |callers_without: bool| {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            let verifier = if callers_without { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| TlsError::Authorities {
                path: files.ca.clone(),
                problem: error.to_string(),
            })?;
            let builder = versions(ServerConfig::builder_with_provider(provider()))?;
            let builder = builder.with_client_cert_verifier(verifier);
            let mut config = builder.with_single_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            // Each connection shows its certificate, also after the authority was changed; and thousands of nodes
            // that come anew come to another replica.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Ok::<_, TlsError>(Arc::new(config))
        };
        let unasked = versions(ServerConfig::builder_with_provider(provider()))?.with_no_client_auth();
        let mut unasked = unasked.with_single_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
        unasked.alpn_protocols = vec![WEBHOOK_ALPN.to_vec()];
        let servers =
            Servers { certified: server(false)?, anyone: server(true)?, unasked: Arc::new(unasked) };
        Ok(Self { client: speaking_http2(client), servers: Some(servers), ca_ends, own_ends })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn versions<Side: ConfigSide>(
    builder: ConfigBuilder<Side, WantsVersions>,
) -> Result<ConfigBuilder<Side, WantsVerifier>, TlsError> {
    let versions = builder.with_safe_default_protocol_versions();
    versions.map_err(|source| TlsError::Own { cert: PathBuf::new(), source })
}

fn speaking_http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn no_certificate(path: &Path, problem: impl ToString) -> TlsError {
    let problem = problem.to_string();
    TlsError::Content { path: path.to_owned(), problem, wanted: "one certificate or several" }
}

/// At least one certificate.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(no_certificate(path, "there is none in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(no_certificate(path, error)),
    }
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    // The error is not shown: it may quote the file.
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::Content {
        path: path.to_owned(),
        problem: "there is no whole key in it".to_owned(),
        wanted: "a private key",
    })
}

/// When a certificate ends, in seconds since 1970.
fn end(path: &Path, certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
    let parsed = parse_x509_certificate(certificate);
    let (_, certificate) = parsed.map_err(|error| no_certificate(path, error))?;
    Ok(certificate.validity().not_after.timestamp())
}

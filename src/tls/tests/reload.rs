//! Files are replaced under a server and its callers, over real sockets.

// A test fails by a panic, its helpers too; clippy sees only the tests themselves.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tempfile::TempDir;
use tls::{Callers, Files, OwnFiles, REREAD_INTERVAL, Tls, TlsError};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "server.example";
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Scene {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let scene = Self { dir: tempfile::tempdir().unwrap(), issuer };
        fs::write(scene.files().ca, scene.issuer.pem()).unwrap();
        scene.reissue();
        scene
    }

    fn files(&self) -> Files {
        let file = |name: &str| self.dir.path().join(name);
        Files { ca: file("ca.pem"), own: Some(OwnFiles { cert: file("cert.pem"), key: file("key.pem") }) }
    }

    /// Puts a new certificate where the old one was, and says which it is.
    fn reissue(&self) -> CertificateDer<'static> {
        let OwnFiles { cert, key } = self.files().own.unwrap();
        let new_key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&new_key, &self.issuer).unwrap();
        fs::write(cert, certificate.pem()).unwrap();
        fs::write(key, new_key.serialize_pem()).unwrap();
        certificate.der().clone()
    }
}

/// Serves until the test ends; takes in whoever can prove itself.
async fn serve(tls: &Tls, callers: Callers) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = Box::pin(tls.incoming(listener, callers).unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Some(stream) = incoming.next().await {
            open.push(stream.unwrap());
        }
    });
    address
}

/// Whether somebody was asked for a certificate; it has none.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A connection of one without a certificate that speaks `protocols`.
async fn connect(
    address: SocketAddr,
    ca: &Path,
    protocols: &[&str],
    asked: Arc<Asked>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_client_cert_resolver(asked);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let connect = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    tokio::time::timeout(PATIENCE, connect).await.unwrap()
}

/// The certificate that a server shows to one without a certificate.
async fn shown_at(address: SocketAddr, ca: &Path) -> CertificateDer<'static> {
    let stream = connect(address, ca, &[], Arc::default()).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn new_callers_see_the_new_certificate_and_a_broken_one_changes_nothing() {
    let scene = Scene::new();
    let tls = Tls::follow(scene.files()).unwrap();
    let address = serve(&tls, Callers::Anyone).await;
    let ca = scene.files().ca;
    let first = shown_at(address, &ca).await;
    assert!(!tls.reread().unwrap(), "nothing has changed");

    let second = scene.reissue();
    assert!(tls.reread().unwrap());
    assert_eq!(shown_at(address, &ca).await, second);
    assert_ne!(first, second);

    fs::write(scene.files().own.unwrap().cert, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    let error = tls.reread().unwrap_err();
    assert!(matches!(&error, TlsError::Content { path, .. } if path.ends_with("cert.pem")), "{error}");
    assert_eq!(shown_at(address, &ca).await, second);
}

#[tokio::test(start_paused = true)]
async fn the_files_are_looked_at_without_being_told() {
    let scene = Scene::new();
    let tls = Tls::follow(scene.files()).unwrap();
    let before = tls.expiry();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2400, 1, 1);
    let key = KeyPair::generate().unwrap();
    let OwnFiles { cert, key: key_file } = scene.files().own.unwrap();
    fs::write(cert, params.signed_by(&key, &scene.issuer).unwrap().pem()).unwrap();
    fs::write(key_file, key.serialize_pem()).unwrap();
    tokio::time::sleep(REREAD_INTERVAL * 2).await;
    let after = tls.expiry();
    assert_eq!(after.own, Some(13_569_465_600));
    assert_ne!(before, after);
    assert_eq!(before.ca, after.ca);
}

#[tokio::test]
async fn a_caller_that_says_nothing_keeps_nobody_waiting() {
    let scene = Scene::new();
    let tls = Tls::follow(scene.files()).unwrap();
    let address = serve(&tls, Callers::Anyone).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    let begun = std::time::Instant::now();
    shown_at(address, &scene.files().ca).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_client_may_have_nothing_to_show_a_server_may_not() {
    let scene = Scene::new();
    let tls = Tls::follow(Files { own: None, ..scene.files() }).unwrap();
    assert_eq!(tls.expiry().own, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(tls.incoming(listener, Callers::Anyone).err(), Some(TlsError::NoServer)));
}

#[tokio::test]
async fn api_servers_speak_http_1_and_are_asked_for_nothing() {
    let scene = Scene::new();
    let tls = Tls::follow(scene.files()).unwrap();
    let ca = scene.files().ca;
    for (callers, protocol, other, is_asked) in
        [(Callers::Unasked, "http/1.1", "h2", false), (Callers::Anyone, "h2", "http/1.1", true)]
    {
        let address = serve(&tls, callers).await;
        let asked = Arc::new(Asked::default());
        let stream = connect(address, &ca, &[protocol, other], asked.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        assert_eq!(asked.0.load(Ordering::Relaxed), is_asked, "{callers:?}");
        assert!(connect(address, &ca, &[other], asked).await.is_err(), "{callers:?} speak {other}");
    }
}

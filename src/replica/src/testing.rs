//! A replica for unit tests.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::replica::Inner;
use crate::{DEFAULT_SNAPSHOT_EVERY, PeerAddress, ReplicaConfig, SystemClock, Timing, TlsFiles};

fn certificate(dir: &Path) -> TlsFiles {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI("spiffe://rds-csi/replica/a".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    let signed = params.signed_by(&key, &authority).unwrap();
    let files = TlsFiles { ca: dir.join("ca"), cert: dir.join("cert"), key: dir.join("key") };
    std::fs::write(&files.ca, authority.pem()).unwrap();
    std::fs::write(&files.cert, signed.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// A replica in `dir` that knows itself alone, with consensus and nothing around it.
pub(crate) async fn opened(dir: &Path) -> Inner {
    let config = ReplicaConfig {
        data_dir: dir.join("data"),
        name: "a".to_owned(),
        peers: vec![PeerAddress { name: "a".to_owned(), address: "127.0.0.1:1".to_owned() }],
        tls: certificate(dir),
        timing: Timing::default(),
        snapshot_every: DEFAULT_SNAPSHOT_EVERY,
    };
    Inner::open(config, Arc::new(SystemClock::new())).await.unwrap()
}

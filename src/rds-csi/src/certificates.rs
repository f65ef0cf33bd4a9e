//! Certificates for a cluster on one machine: an authority of its own, and one certificate for each replica, node
//! and operator (DESIGN.md, "Security"). A real cluster brings its own, of the same shape.
//!
//! Life cycle: the first start in a directory makes the authority, later ones find it; certificates that are
//! there are kept. Keys are readable by their owner only.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use thiserror::Error;

const AUTHORITY_NAME: &str = "rds-csi dev authority";
/// Only the owner reads keys.
const KEY_MODE: u32 = 0o600;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A key or a certificate cannot be made or understood.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Whom a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A controller replica, by its name or by that of its StatefulSet.
    Replica(String),
    /// A node, by its id.
    Node(String),
    /// A person.
    Operator(String),
}

impl Owner {
    /// The name in the certificate that tells the role and its holder.
    pub fn uri(&self) -> String {
        match self {
            Self::Replica(name) => format!("spiffe://rds-csi/replica/{name}"),
            Self::Node(id) => format!("spiffe://rds-csi/node/{id}"),
            Self::Operator(who) => format!("spiffe://rds-csi/operator/{who}"),
        }
    }
}

/// PEM files of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// An authority in a directory.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    /// The authority of `directory`, made if there is none yet.
    pub fn open_or_create(directory: &Path) -> Result<Self, CertificateError> {
        let key_path = directory.join("ca.key");
        let params = authority_params(AUTHORITY_NAME);
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                // The key comes last: a start that was cut short before it begins anew.
                write(&directory.join("ca.pem"), &params.self_signed(&key)?.pem())?;
                write_private(&key_path, &key.serialize_pem())?;
                key
            }
            Err(error) => return Err(CertificateError::File { path: key_path, error }),
        };
        Ok(Self { directory: directory.to_owned(), params, key })
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The certificate of `owner` in files named `stem`, made if it is not there yet.
    pub fn files(&self, owner: &Owner, stem: &str) -> Result<CertificateFiles, CertificateError> {
        let files = CertificateFiles {
            cert: self.directory.join(format!("{stem}.pem")),
            key: self.directory.join(format!("{stem}.key")),
        };
        if !files.key.exists() {
            let (certificate, key) = self.issue(owner)?;
            write(&files.cert, &certificate.pem())?;
            write_private(&files.key, &key.serialize_pem())?;
        }
        Ok(files)
    }

    fn issue(&self, owner: &Owner) -> Result<(Certificate, KeyPair), CertificateError> {
        // Only a replica serves: with these names a node could pose as one.
        let names = match owner {
            Owner::Replica(_) => vec![
                SanType::DnsName(replica::SERVER_NAME.try_into()?),
                SanType::DnsName("localhost".try_into()?),
                SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ],
            Owner::Node(_) | Owner::Operator(_) => Vec::new(),
        };
        let params = leaf_params(owner, names)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        Ok((certificate, key))
    }
}

/// What is in a certificate of `owner`, who serves under these names.
pub(crate) fn leaf_params(owner: &Owner, names: Vec<SanType>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&owner.uri());
    params.subject_alt_names = vec![SanType::URI(owner.uri().try_into()?)];
    params.subject_alt_names.extend(names);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What is in the certificate of an authority that signs what others show, and no further authority.
pub(crate) fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn write(path: &Path, text: &str) -> Result<(), CertificateError> {
    fs::write(path, text).map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

fn write_private(path: &Path, text: &str) -> Result<(), CertificateError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(KEY_MODE)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use x509_parser::extensions::GeneralName;
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    fn names_and_usage(path: &Path) -> (Vec<String>, bool) {
        let (_, pem) = parse_x509_pem(&fs::read(path).unwrap()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let mut found = Vec::new();
        for name in &names.value.general_names {
            if let GeneralName::URI(uri) = name {
                found.push(format!("URI:{uri}"));
            } else if let GeneralName::DNSName(dns) = name {
                found.push(format!("DNS:{dns}"));
            } else {
                found.push(format!("{name:?}"));
            }
        }
        let usage = certificate.extended_key_usage().unwrap().unwrap().value.clone();
        (found, usage.server_auth && usage.client_auth)
    }

    /// Whether a server would accept its holder as a client.
    fn is_accepted(path: &Path, authority: &Path) -> bool {
        let certificate = CertificateDer::from_pem_file(path).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        verifier.verify_client_cert(&certificate, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_certificate_names_its_owner_and_only_a_replicas_is_a_servers() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path()).unwrap();
        let server = ["DNS:rds-csi", "DNS:localhost", "IPAddress([127, 0, 0, 1])"];
        for (owner, uri, server_names) in [
            (Owner::Replica("c-0".to_owned()), "spiffe://rds-csi/replica/c-0", &server[..]),
            (Owner::Node("node-a".to_owned()), "spiffe://rds-csi/node/node-a", &[]),
            (Owner::Operator("dev".to_owned()), "spiffe://rds-csi/operator/dev", &[]),
        ] {
            let files = authority.files(&owner, uri.rsplit('/').next().unwrap()).unwrap();
            let (names, serves_both_ends) = names_and_usage(&files.cert);
            assert_eq!(names[0], format!("URI:{uri}"));
            assert_eq!(names[1..], *server_names, "{uri}");
            assert!(serves_both_ends);
            assert!(is_accepted(&files.cert, &authority.certificate()));
        }
    }

    #[test]
    fn keys_are_private_and_what_is_there_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let owner = Owner::Node("node-a".to_owned());
        let first = Authority::open_or_create(directory.path()).unwrap().files(&owner, "node-a").unwrap();
        let before = fs::read(&first.cert).unwrap();
        for key in [&first.key, &directory.path().join("ca.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = Authority::open_or_create(directory.path()).unwrap();
        assert_eq!(fs::read(again.files(&owner, "node-a").unwrap().cert).unwrap(), before);
        // An authority that was opened again signs in the same name and with the same key.
        let late = again.files(&Owner::Node("node-b".to_owned()), "node-b").unwrap();
        assert!(is_accepted(&late.cert, &again.certificate()));
    }
}

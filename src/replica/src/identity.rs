//! Who calls: the role in the caller's certificate (DESIGN.md, "Security").
//!
//! A certificate names its bearer in one URI: `spiffe://rds-csi/replica/<name>`, `spiffe://rds-csi/node/<node id>` or
//! `spiffe://rds-csi/operator/<who>`. TLS has proven it before any of this runs; here it is read, and a service is
//! kept to the callers that it is for.

use std::fmt;

use state_machine::NodeId;
use tonic::service::Interceptor;
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What every role's URI begins with.
const PREFIX: &str = "spiffe://rds-csi/";
/// Longest name of a replica or an operator, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 253;

/// The bearer of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A controller replica, by its pod's name or by its StatefulSet's.
    Replica(String),
    /// A node plugin, which may speak for this node only.
    Node(NodeId),
    /// A person, by name.
    Operator(String),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(name) => write!(f, "replica {name}"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::Operator(who) => write!(f, "operator {who}"),
        }
    }
}

/// Which callers a service is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleKind {
    /// Controller replicas.
    Replica,
    /// Node plugins.
    Node,
    /// People.
    Operator,
}

impl Role {
    /// Its kind.
    pub fn kind(&self) -> RoleKind {
        match self {
            Self::Replica(_) => RoleKind::Replica,
            Self::Node(_) => RoleKind::Node,
            Self::Operator(_) => RoleKind::Operator,
        }
    }

    /// Whether a replica's certificate is good for the replica `name`: its own, or, if the pods of a StatefulSet share
    /// one that bears the StatefulSet's name, one of these pods.
    pub(crate) fn is_replica(&self, name: &str) -> bool {
        let Self::Replica(bearer) = self else { return false };
        let ordinal = name.strip_prefix(bearer.as_str()).and_then(|rest| rest.strip_prefix('-'));
        let is_pod = ordinal
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
        bearer == name || is_pod
    }

    fn parse(uri: &str) -> Option<Self> {
        let (kind, name) = uri.strip_prefix(PREFIX)?.split_once('/')?;
        match kind {
            "replica" => is_name(name).then(|| Self::Replica(name.to_owned())),
            "node" => NodeId::parse(name).ok().map(Self::Node),
            "operator" => is_name(name).then(|| Self::Operator(name.to_owned())),
            _ => None,
        }
    }
}

fn is_name(name: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(safe)
}

/// Lets only one kind of caller through to the service behind it, which then finds the [`Role`] with [`caller`].
/// Refusals are logged.
#[derive(Debug, Clone, Copy)]
pub struct RequireRole(pub RoleKind);

impl Interceptor for RequireRole {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let role = from_certificate(&request)?;
        if role.kind() != self.0 {
            tracing::warn!(caller = %role, service_for = ?self.0, "refused a caller of the wrong role");
            return Err(Status::permission_denied(format!("{role} may not call this service")));
        }
        request.extensions_mut().insert(role);
        Ok(request)
    }
}

/// Who sent the request.
pub fn caller<T>(request: &Request<T>) -> Result<Role, Status> {
    match request.extensions().get::<Role>() {
        Some(role) => Ok(role.clone()),
        None => from_certificate(request),
    }
}

fn from_certificate<T>(request: &Request<T>) -> Result<Role, Status> {
    let role = match request.peer_certs().as_deref().and_then(|chain| chain.first()) {
        Some(certificate) => role_in(certificate.as_ref()),
        None => Err("it showed no certificate"),
    };
    role.map_err(|problem| {
        let address =
            request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        tracing::warn!(%address, problem, "refused a caller without a role");
        Status::unauthenticated(format!("the caller's certificate was not accepted: {problem}"))
    })
}

/// The one role that a certificate gives its bearer.
fn role_in(der: &[u8]) -> Result<Role, &'static str> {
    let (_, certificate) = parse_x509_certificate(der).map_err(|_| "it cannot be read")?;
    let names = certificate.subject_alternative_name().map_err(|_| "its alternative names cannot be read")?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
        if let GeneralName::URI(uri) = name { uri.starts_with(PREFIX).then_some(*uri) } else { None }
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Role::parse(uri).ok_or("its spiffe://rds-csi/ URI names no role"),
        (None, _) => Err("it has no spiffe://rds-csi/ URI"),
        (Some(_), Some(_)) => Err("it has more than one spiffe://rds-csi/ URI"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["rds-csi".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn roles_are_read_from_the_uri() {
        let replica = certificate(&["https://elsewhere/replica/x", "spiffe://rds-csi/replica/rds-csi-0"]);
        assert_eq!(role_in(&replica), Ok(Role::Replica("rds-csi-0".to_owned())));
        let node = certificate(&["spiffe://rds-csi/node/worker-1"]);
        assert_eq!(role_in(&node), Ok(Role::Node(NodeId::parse("worker-1").unwrap())));
        let operator = certificate(&["spiffe://rds-csi/operator/ada"]);
        assert_eq!(role_in(&operator), Ok(Role::Operator("ada".to_owned())));
    }

    #[test]
    fn a_stateful_sets_certificate_is_good_for_its_pods_only() {
        let replica = |name: &str| Role::Replica(name.to_owned());
        for name in ["rds", "rds-0", "rds-17"] {
            assert!(replica("rds").is_replica(name), "{name}");
        }
        for name in ["rds-", "rds0", "rds-x", "rds-0-1", "rds-0x", "r-0", ""] {
            assert!(!replica("rds").is_replica(name), "{name}");
        }
        assert!(replica("rds-0").is_replica("rds-0") && !replica("rds-0").is_replica("rds-1"));
        assert!(!Role::Operator("rds".to_owned()).is_replica("rds"));
    }

    #[test]
    fn anything_else_gives_no_role() {
        for uris in [
            &[][..],
            &["spiffe://rds-csi/"],
            &["spiffe://rds-csi/replica"],
            &["spiffe://rds-csi/replica/"],
            &["spiffe://rds-csi/replica/a/b"],
            &["spiffe://rds-csi/replica/a b"],
            &["spiffe://rds-csi/king/a"],
            &["spiffe://rds-csi/node/a;b"],
            &["spiffe://other/replica/a"],
            &["spiffe://rds-csi/node/a", "spiffe://rds-csi/operator/a"],
        ] {
            assert!(role_in(&certificate(uris)).is_err(), "{uris:?}");
        }
        assert!(role_in(b"garbage").is_err());
    }
}

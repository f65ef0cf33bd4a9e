//! Which node calls: its certificate says so, or the ServiceAccount token of its plugin (DESIGN.md, "Security").
//!
//! A token is accepted only from a caller without a certificate, and only for the node services. It has to be meant for
//! the audience of the settings, to be of the node plugins' ServiceAccount, and bound to a pod on the node that is spoken
//! for; the API server is asked about each. What is accepted is believed for a minute, by the observer. A token is never
//! logged: it is taken out of the request's metadata before anything else sees them.

use std::fmt;
use std::time::Instant;

use observer::{TokenAnswer, TokenIdentity, Tokens};
use replica::{RequireRole, Role, RoleKind};
use state_machine::NodeId;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::NodeTokensConfig;

/// Where a caller shows its token, and what stands before it.
const AUTHORIZATION: &str = "authorization";
const BEARER: &str = "Bearer ";

/// A token as it came; not checked yet.
#[derive(Clone)]
pub(crate) struct BearerToken(String);

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}

/// What a caller has shown.
#[derive(Debug, Clone)]
pub(crate) enum Shown {
    /// A node's certificate; TLS has proven it.
    Certificate(NodeId),
    /// A token, to be checked.
    Token(BearerToken),
}

impl Shown {
    /// What the caller behind [`AdmitNode`] has shown.
    pub(crate) fn by<T>(request: &Request<T>) -> Result<Self, Status> {
        if let Some(token) = request.extensions().get::<BearerToken>() {
            return Ok(Self::Token(token.clone()));
        }
        match replica::caller(request)? {
            Role::Node(node) => Ok(Self::Certificate(node)),
            role @ (Role::Replica(_) | Role::Operator(_)) => {
                Err(Status::permission_denied(format!("{role} is no node")))
            }
        }
    }
}

/// Lets nodes' certificates through to the node services, and, if tokens are accepted, who has a token and no
/// certificate: the service behind checks it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmitNode {
    pub(crate) tokens_accepted: bool,
}

impl Interceptor for AdmitNode {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = request.metadata_mut().remove(AUTHORIZATION);
        let has_certificate = request.peer_certs().is_some_and(|chain| !chain.is_empty());
        if has_certificate || !self.tokens_accepted {
            return RequireRole(RoleKind::Node).call(request);
        }
        let token = token.as_ref().and_then(|value| value.to_str().ok()?.strip_prefix(BEARER));
        let Some(token) = token.map(|token| BearerToken(token.to_owned())) else {
            return Err(Status::unauthenticated("the caller showed neither a certificate nor a token"));
        };
        request.extensions_mut().insert(token);
        Ok(request)
    }
}

/// Tells nodes by what they show. Clones share what is remembered of tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeCallers {
    tokens: Option<NodeTokens>,
}

#[derive(Debug, Clone)]
struct NodeTokens {
    tokens: Tokens,
    namespace: String,
    service_account: String,
}

impl NodeCallers {
    /// Accepts tokens of this ServiceAccount too.
    pub(crate) fn with_tokens(client: observer::Client, config: &NodeTokensConfig) -> Self {
        let NodeTokensConfig { audience, namespace, service_account } = config.clone();
        let tokens = Tokens::new(client, &audience);
        Self { tokens: Some(NodeTokens { tokens, namespace, service_account }) }
    }

    /// For the services that nodes call.
    pub(crate) fn admission(&self) -> AdmitNode {
        AdmitNode { tokens_accepted: self.tokens.is_some() }
    }

    /// The node that has shown this.
    pub(crate) async fn node(&self, shown: &Shown) -> Result<NodeId, Status> {
        match (shown, &self.tokens) {
            (Shown::Certificate(node), _) => Ok(node.clone()),
            (Shown::Token(token), Some(tokens)) => tokens.node(token).await,
            (Shown::Token(_), None) => Err(Status::unauthenticated("tokens are not accepted")),
        }
    }
}

impl NodeTokens {
    async fn node(&self, token: &BearerToken) -> Result<NodeId, Status> {
        let identity = match self.tokens.check(&token.0, Instant::now()).await {
            TokenAnswer::Accepted(identity) => identity,
            TokenAnswer::Refused(reason) => {
                tracing::warn!(reason, "refused a token");
                return Err(Status::unauthenticated(format!(
                    "the caller's token was not accepted: {reason}"
                )));
            }
            TokenAnswer::Unknown(reason) => {
                tracing::warn!(reason, "cannot check a token");
                return Err(Status::unavailable(format!(
                    "the caller's token cannot be checked now: {reason}"
                )));
            }
        };
        self.node_of(&identity)
            .inspect_err(|status| tracing::warn!(reason = status.message(), "refused a token"))
    }

    fn node_of(&self, identity: &TokenIdentity) -> Result<NodeId, Status> {
        let TokenIdentity { namespace, service_account, node, .. } = identity;
        if (namespace, service_account) != (&self.namespace, &self.service_account) {
            return Err(Status::permission_denied(format!(
                "the ServiceAccount {namespace}/{service_account} is not the node plugins'"
            )));
        }
        let no_node = || Status::permission_denied("the token is not bound to a pod on a node");
        node.clone().ok_or_else(no_node)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn who_has_no_certificate_needs_a_token_and_only_where_they_are_accepted() {
        let admitted = |tokens_accepted, value: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert(AUTHORIZATION, value.parse().unwrap());
            }
            AdmitNode { tokens_accepted }.call(request)
        };
        for value in [None, Some("Bearer"), Some("Basic eDp5"), Some("eyJ")] {
            assert_eq!(admitted(true, value).unwrap_err().code(), Code::Unauthenticated, "{value:?}");
        }
        assert_eq!(admitted(false, Some("Bearer eyJ")).unwrap_err().code(), Code::Unauthenticated);

        let request = admitted(true, Some("Bearer eyJ")).unwrap();
        assert!(!request.metadata().contains_key(AUTHORIZATION), "whoever logs the metadata logs the token");
        let shown = Shown::by(&request).unwrap();
        assert!(matches!(&shown, Shown::Token(BearerToken(token)) if token == "eyJ"));
        assert!(!format!("{shown:?}").contains("eyJ"));
    }

    #[tokio::test]
    async fn only_the_node_plugins_account_speaks_for_a_node() {
        let client = observer::connect_as_nobody("http://127.0.0.1:1").unwrap();
        let tokens = NodeTokens {
            tokens: Tokens::new(client, "rds-csi"),
            namespace: "storage".to_owned(),
            service_account: "node".to_owned(),
        };
        let node = NodeId::parse("node-a").unwrap();
        let identity = |namespace: &str, account: &str, node: Option<&NodeId>| TokenIdentity {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            node: node.cloned(),
            pod: None,
        };
        assert_eq!(tokens.node_of(&identity("storage", "node", Some(&node))).unwrap(), node);
        for other in [
            identity("storage", "other", Some(&node)),
            identity("other", "node", Some(&node)),
            identity("storage", "node", None),
        ] {
            assert_eq!(tokens.node_of(&other).unwrap_err().code(), Code::PermissionDenied, "{other:?}");
        }
        let nobody_answers = tokens.node(&BearerToken("eyJ".to_owned())).await.unwrap_err();
        assert_eq!(nobody_answers.code(), Code::Unavailable);
    }
}

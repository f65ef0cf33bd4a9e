//! ServiceAccount tokens of node plugins, checked by the API server (TokenReview).
//!
//! A token proves what its pod is: its ServiceAccount, and the node that it was issued for, if it is bound to a pod
//! (Kubernetes 1.32 and newer say so). The caller compares them with what is claimed. A yes is remembered for a short
//! while, under the token's hash; a no never is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use state_machine::NodeId;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Tokens that are remembered: more than there are nodes.
pub const MAX_CACHED_TOKENS: usize = 10_000;
/// How long a token is remembered. A pod that is deleted may go on speaking for so long.
pub const TOKEN_CACHED: Duration = Duration::from_secs(60);
/// Reviews that the API server is asked for at once.
pub const MAX_REVIEWS_AT_ONCE: usize = 16;

/// How long a review may take, waiting for others included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// What the API server adds to a user that is a pod's ServiceAccount.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// How the user name of a ServiceAccount begins; its namespace and name follow.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The pod that a token was issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIdentity {
    /// The ServiceAccount's namespace.
    pub namespace: String,
    /// The ServiceAccount's name.
    pub service_account: String,
    /// The node that the token's pod runs on; without it the token proves no node.
    pub node: Option<NodeId>,
    /// The token's pod.
    pub pod: Option<PodIdentity>,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum TokenAnswer {
    /// It is valid for the audience, and speaks for this.
    Accepted(TokenIdentity),
    /// It is not, with the reason.
    Refused(String),
    /// The API server could not be asked, with the reason.
    Unknown(String),
}

/// A token that was accepted.
#[derive(Debug)]
struct Remembered {
    identity: TokenIdentity,
    until: Instant,
}

type TokenHash = [u8; 32];

struct Shared {
    api: Api<TokenReview>,
    audience: String,
    remembered: Mutex<HashMap<TokenHash, Remembered>>,
    reviews: Semaphore,
}

/// Checks tokens. Clones share what they remember.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("audience", &self.shared.audience).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Checks tokens that are meant for `audience`.
    pub fn new(client: Client, audience: &str) -> Self {
        Self {
            shared: Arc::new(Shared {
                api: Api::all(client),
                audience: audience.to_owned(),
                remembered: Mutex::new(HashMap::new()),
                reviews: Semaphore::new(MAX_REVIEWS_AT_ONCE),
            }),
        }
    }

    /// Whom the token speaks for, at the caller's `now`.
    pub async fn check(&self, token: &str, now: Instant) -> TokenAnswer {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return TokenAnswer::Refused(format!("a token has 1 to {MAX_TOKEN_BYTES} bytes"));
        }
        let hash: TokenHash = Sha256::digest(token).into();
        if let Some(identity) = self.remembered(&hash, now) {
            return TokenAnswer::Accepted(identity);
        }
        let answer = match timeout(REVIEW_TIMEOUT, self.review(token)).await {
            Ok(Ok(status)) => judge(status, &self.shared.audience),
            Ok(Err(problem)) => TokenAnswer::Unknown(problem),
            Err(_) => TokenAnswer::Unknown(format!("no answer to a TokenReview within {REVIEW_TIMEOUT:?}")),
        };
        if let TokenAnswer::Accepted(identity) = &answer {
            self.remember(hash, identity.clone(), now);
        }
        answer
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let _one_of_few = self.shared.reviews.acquire().await.map_err(|error| error.to_string())?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.shared.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = self.shared.api.create(&PostParams::default(), &review).await;
        let reviewed = answer.map_err(|error| format!("cannot have a token reviewed: {error}"))?;
        reviewed.status.ok_or_else(|| "the API server answered a TokenReview without a status".to_owned())
    }

    fn remembered(&self, hash: &TokenHash, now: Instant) -> Option<TokenIdentity> {
        let remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(hash).filter(|entry| now < entry.until).map(|entry| entry.identity.clone())
    }

    fn remember(&self, hash: TokenHash, identity: TokenIdentity, now: Instant) {
        let mut remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_CACHED_TOKENS {
            remembered.retain(|_, entry| now < entry.until);
        }
        // Full of tokens that still are valid: this one is asked about again.
        if remembered.len() < MAX_CACHED_TOKENS {
            remembered.insert(hash, Remembered { identity, until: now + TOKEN_CACHED });
        }
    }
}

fn judge(status: TokenReviewStatus, audience: &str) -> TokenAnswer {
    if status.authenticated != Some(true) {
        return TokenAnswer::Refused(status.error.unwrap_or_else(|| "the token is not valid".to_owned()));
    }
    // An authenticator that does not know audiences leaves them out: the token may be meant for anyone.
    if !status.audiences.unwrap_or_default().iter().any(|allowed| allowed == audience) {
        return TokenAnswer::Refused(format!("the token is not meant for {audience}"));
    }
    let Some(UserInfo { username, extra, .. }) = status.user else {
        return TokenAnswer::Refused("the token has no user".to_owned());
    };
    let username = username.unwrap_or_default();
    let account = username.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return TokenAnswer::Refused("the token is not a ServiceAccount's".to_owned());
    };
    let extra = extra.unwrap_or_default();
    let pod = only(&extra, POD_NAME)
        .zip(only(&extra, POD_UID))
        .map(|(name, uid)| PodIdentity { name: name.to_owned(), uid: uid.to_owned() });
    TokenAnswer::Accepted(TokenIdentity {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        node: only(&extra, NODE_NAME).and_then(|name| NodeId::parse(name).ok()),
        pod,
    })
}

/// The value under `key`, if there is exactly one.
fn only<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key)?.as_slice() {
        [value] => Some(value),
        _ => None,
    }
}

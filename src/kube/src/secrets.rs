//! Secrets by name, and the authority that webhook configurations tell the API server to believe: for the program that
//! makes certificates, not for the controllers.
//!
//! A Secret is written only as it was read: if somebody else wrote it meanwhile, or made it, that is [`WriteError::Raced`]
//! and nothing was changed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::timeout;

/// How long the API server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The API server's word for a conflict: the name is there already, or what was read is not the newest.
const CONFLICT: u16 = 409;
/// Secrets with a certificate and its key.
const TLS_TYPE: &str = "kubernetes.io/tls";

/// Why a Secret was not written, or nothing could be read.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Somebody else was there in between.
    #[error("{0} was written by somebody else at the same time")]
    Raced(String),
    /// The API server did not do it.
    #[error("cannot {action} {what}: {reason}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// Why not.
        reason: String,
    },
}

/// A Secret as it was read; what is in it is not printed.
#[derive(Clone, Default)]
pub struct StoredSecret(Secret);

impl Debug for StoredSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StoredSecret").field(&self.0.metadata.name).finish()
    }
}

impl StoredSecret {
    /// The bytes under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice())
    }
}

/// The Secrets of a namespace.
#[derive(Clone)]
pub struct Secrets {
    api: Api<Secret>,
    namespace: String,
}

impl Secrets {
    /// Those of `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    /// Reads one; `None`: there is none of that name.
    pub async fn read(&self, name: &str) -> Result<Option<StoredSecret>, WriteError> {
        let asked = bounded("read", self.named(name), self.api.get_opt(name)).await?;
        Ok(asked.map(StoredSecret))
    }

    /// Puts these files into the Secret that was read, or into a new one; what else it holds stays.
    pub async fn write(
        &self,
        name: &str,
        read: Option<StoredSecret>,
        files: &BTreeMap<&str, Vec<u8>>,
    ) -> Result<(), WriteError> {
        let is_new = read.is_none();
        let mut secret = read.unwrap_or_default().0;
        let data = secret.data.get_or_insert_default();
        for (key, bytes) in files {
            data.insert((*key).to_owned(), ByteString(bytes.clone()));
        }
        let params = PostParams::default();
        if is_new {
            secret.metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            secret.type_ = Some(TLS_TYPE.to_owned());
            bounded("create", self.named(name), self.api.create(&params, &secret)).await?;
        } else {
            // With the version that was read: the API server refuses it if there is a newer one.
            bounded("update", self.named(name), self.api.replace(name, &params, &secret)).await?;
        }
        Ok(())
    }

    fn named(&self, name: &str) -> String {
        format!("Secret {}/{name}", self.namespace)
    }
}

/// Has the API server believe `ca_pem`, one authority or several in PEM, of all webhooks in the configurations of this
/// name. Says how many webhooks each kind has, validating and mutating; those that have it already are left alone.
pub async fn trust_webhooks(client: &Client, name: &str, ca_pem: &[u8]) -> Result<[usize; 2], WriteError> {
    let validating = trust::<ValidatingWebhookConfiguration>(client, name, ca_pem).await?;
    Ok([validating, trust::<MutatingWebhookConfiguration>(client, name, ca_pem).await?])
}

/// A kind of webhook configuration.
trait Webhooks: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned {
    /// Each webhook's name and how it is called.
    fn all(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Webhooks for ValidatingWebhookConfiguration {
    fn all(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks
            .iter()
            .flatten()
            .map(|webhook| (webhook.name.as_str(), &webhook.client_config))
            .collect()
    }
}

impl Webhooks for MutatingWebhookConfiguration {
    fn all(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks
            .iter()
            .flatten()
            .map(|webhook| (webhook.name.as_str(), &webhook.client_config))
            .collect()
    }
}

async fn trust<K: Webhooks>(client: &Client, name: &str, ca_pem: &[u8]) -> Result<usize, WriteError> {
    let api = Api::<K>::all_with(client.clone(), &());
    let what = format!("{} {name}", K::kind(&()));
    let Some(found) = bounded("read", what.clone(), api.get_opt(name)).await? else { return Ok(0) };
    let webhooks = found.all();
    let bundle = ByteString(ca_pem.to_vec());
    let is_told = |webhook: &&(&str, &WebhookClientConfig)| webhook.1.ca_bundle.as_ref() == Some(&bundle);
    if webhooks.iter().all(|webhook| is_told(&webhook)) {
        return Ok(webhooks.len());
    }
    // Merged by the webhooks' names, so nothing else of them is written.
    let told: Vec<Value> = webhooks
        .iter()
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let patch = Patch::Strategic(json!({"webhooks": told}));
    bounded("patch", what, api.patch(name, &PatchParams::default(), &patch)).await?;
    Ok(webhooks.len())
}

/// The API server's answer, if it comes in time.
async fn bounded<T>(
    action: &'static str,
    what: String,
    asked: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, WriteError> {
    let reason = match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => return Err(WriteError::Raced(what)),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            format!("{}; the ServiceAccount needs the right to {action} it", status.message)
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer from the API server within {ANSWER_TIMEOUT:?}"),
    };
    Err(WriteError::Refused { action, what, reason })
}

//! The API server, asked as whoever has the token.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rds_csi::http::Line;
use serde_json::{Value, json};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// Where the objects of a kind are, and whether they are in namespaces.
type Resource = (String, bool);

/// What the API server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// What the API server says, if it refuses.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The object, unless it is a refusal.
    pub(crate) fn accepted(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{}: {}", self.status, self.message());
        Ok(self.body)
    }
}

/// A way to the API server. Clones share what is known of kinds.
#[derive(Clone)]
pub(crate) struct Api {
    address: SocketAddr,
    authority: PathBuf,
    token: String,
    kinds: Arc<Mutex<BTreeMap<String, Resource>>>,
}

impl Api {
    /// To the API server at `address`, whose certificate `authority` signed.
    pub(crate) fn new(address: SocketAddr, authority: &Path, token: &str) -> Self {
        Self { address, authority: authority.to_owned(), token: token.to_owned(), kinds: Arc::default() }
    }

    /// The same as somebody else.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Asks, and takes any answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let form = if method == "PATCH" { MERGE } else { JSON };
        let bearer = format!("Bearer {}", self.token);
        let fields = [("authorization", bearer.as_str()), ("content-type", form), ("accept", JSON)];
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let (address, name) = (self.address.to_string(), self.address.ip().to_string());
        let mut line = Line::open_with_tls(&address, &self.authority, &name).await?;
        let answer = line.ask(method, path, &fields, body).await?;
        // What is no JSON is a short text, such as that of /readyz.
        let body = serde_json::from_slice(&answer.body).unwrap_or_else(|_| json!({"message": answer.text()}));
        Ok(Answer { status: answer.status, body })
    }

    /// What is at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await?.accepted().with_context(|| format!("read {path}"))
    }

    /// The objects of the collection at `path`.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path).await?;
        let Value::Array(items) = list["items"].take() else { bail!("{path} is no list: {list}") };
        Ok(items)
    }

    /// Makes an object at `path`.
    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.ask("POST", path, Some(object)).await?.accepted().with_context(|| format!("make one at {path}"))
    }

    /// Changes fields of the object at `path`.
    pub(crate) async fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        self.ask("PATCH", path, Some(change)).await?.accepted().with_context(|| format!("change {path}"))
    }

    /// Deletes the object at `path`, at once.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let answer = self.ask("DELETE", path, Some(&options)).await?;
        answer.accepted().with_context(|| format!("delete {path}"))
    }

    /// Whether nothing is at `path`.
    pub(crate) async fn is_gone(&self, path: &str) -> Result<bool> {
        let answer = self.ask("GET", path, None).await?;
        Ok(answer.status == 404)
    }

    /// Makes an object, or only tries whether it could be made. A field that the API does not have is refused.
    pub(crate) async fn create(&self, object: &Value, is_tried_only: bool) -> Result<Answer> {
        let tried = if is_tried_only { "&dryRun=All" } else { "" };
        let path = format!("{}?fieldValidation=Strict{tried}", self.collection_of(object).await?);
        self.ask("POST", &path, Some(object)).await
    }

    /// The collection that an object belongs to.
    async fn collection_of(&self, object: &Value) -> Result<String> {
        let text = |field: &str| object[field].as_str().with_context(|| format!("an object without {field}"));
        let (version, kind) = (text("apiVersion")?, text("kind")?);
        let prefix =
            if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let (name, is_namespaced) = self.resource(&prefix, kind).await?;
        if !is_namespaced {
            return Ok(format!("{prefix}/{name}"));
        }
        let namespace = object["metadata"]["namespace"].as_str().context("an object without a namespace")?;
        Ok(format!("{prefix}/namespaces/{namespace}/{name}"))
    }

    /// What the API server itself says of a kind.
    async fn resource(&self, prefix: &str, kind: &str) -> Result<Resource> {
        let key = format!("{prefix}/{kind}");
        if let Some(known) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let found = self.get(prefix).await?;
        let resources = found["resources"].as_array().context("an API without resources")?;
        let is_it = |one: &&Value| {
            one["kind"] == kind && one["name"].as_str().is_some_and(|name| !name.contains('/'))
        };
        let one = resources.iter().find(is_it).with_context(|| format!("the API has no {key}"))?;
        let resource =
            (one["name"].as_str().unwrap_or_default().to_owned(), one["namespaced"] == Value::Bool(true));
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(key, resource.clone());
        Ok(resource)
    }
}

/// A file for Kubernetes' own programs: whom to ask, and as whom.
pub(crate) fn write_kubeconfig(
    path: &Path,
    address: SocketAddr,
    authority: &Path,
    token: &str,
) -> Result<()> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": format!("https://{address}"),
                                                "certificate-authority": authority}}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    // JSON is YAML.
    fs::write(path, config.to_string()).with_context(|| format!("write {}", path.display()))
}

//! What a pod's containers find where they mount its volumes: kubelet's part in directories of this run.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::api::Api;

/// Of what is mounted from a host, what the pods of one host share. The rest is of hardware, or there anyhow.
const HOST_DIRECTORY: &str = "/var/lib/kubelet";
/// A file of the host's.
const MACHINE_ID: &str = "/etc/machine-id";

/// Makes the volumes of one pod.
pub(crate) struct Volumes<'a> {
    pub(crate) api: &'a Api,
    pub(crate) pod: &'a Value,
    /// Where the pod's own are kept.
    pub(crate) directory: &'a Path,
    /// What is `/` on the pod's host.
    pub(crate) host: &'a Path,
    /// Changes what is in a file of a ConfigMap, by its name.
    pub(crate) adapt: &'a (dyn Fn(&str, String) -> Result<String> + Sync),
}

impl Volumes<'_> {
    /// Where the volume is; `None` if containers do without.
    pub(crate) async fn make(&self, volume: &Value) -> Result<Option<PathBuf>> {
        let name = volume["name"].as_str().context("a volume without a name")?;
        let own = self.directory.join(name);
        if let Some(host_path) = volume["hostPath"]["path"].as_str() {
            return self.host_path(host_path);
        }
        make_directory(&own)?;
        if volume["projected"].is_object() {
            self.project(&own, &volume["projected"]).await.with_context(|| format!("volume {name}"))?;
        } else if volume["emptyDir"].is_object() || volume["persistentVolumeClaim"].is_object() {
            fs::set_permissions(&own, Permissions::from_mode(0o2770))?;
        } else {
            bail!("volume {name} is of a kind that is not known here: {volume}");
        }
        self.give_to_group(&own)?;
        Ok(Some(own))
    }

    fn host_path(&self, path: &str) -> Result<Option<PathBuf>> {
        let here = self.host.join(path.trim_start_matches('/'));
        if path == MACHINE_ID {
            let node = self.pod["spec"]["nodeName"].as_str().context("a pod without a node")?;
            make_directory(here.parent().context("a file in no directory")?)?;
            // 32 digits, another for each node.
            let digits: String = node.bytes().map(|byte| format!("{byte:02x}")).collect();
            fs::write(&here, format!("{digits:0<32.32}\n"))?;
            return Ok(Some(here));
        }
        if !path.starts_with(HOST_DIRECTORY) {
            return Ok(None);
        }
        make_directory(&here)?;
        Ok(Some(here))
    }

    /// `fsGroup`: the group of all that is in the directory.
    fn give_to_group(&self, path: &Path) -> Result<()> {
        let Some(group) = self.pod["spec"]["securityContext"]["fsGroup"].as_u64() else { return Ok(()) };
        let group = u32::try_from(group).context("a group's number")?;
        chown(path, None, Some(group)).with_context(|| format!("give {} to a group", path.display()))?;
        if path.is_dir() {
            for entry in fs::read_dir(path)? {
                self.give_to_group(&entry?.path())?;
            }
        }
        Ok(())
    }

    async fn project(&self, into: &Path, projected: &Value) -> Result<()> {
        let mode =
            projected["defaultMode"].as_u64().and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644);
        for source in projected["sources"].as_array().context("no sources")? {
            for (path, bytes) in self.files_of(source).await? {
                let file = into.join(path);
                make_directory(file.parent().context("a file in no directory")?)?;
                // Of an earlier start of the pod.
                fs::remove_file(&file).unwrap_or_default();
                fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
                fs::set_permissions(&file, Permissions::from_mode(mode))?;
            }
        }
        Ok(())
    }

    async fn files_of(&self, source: &Value) -> Result<Vec<(String, Vec<u8>)>> {
        if source["serviceAccountToken"].is_object() {
            return Ok(vec![self.token(&source["serviceAccountToken"]).await?]);
        }
        let namespace = self.namespace()?;
        if let Some(items) = source["downwardAPI"]["items"].as_array() {
            let of_item = |item: &Value| {
                let field = item["fieldRef"]["fieldPath"].as_str();
                let is_namespace = field == Some("metadata.namespace");
                let path = item["path"].as_str().filter(|_| is_namespace);
                Ok((path.with_context(|| format!("not known here: {item}"))?.to_owned(), namespace.into()))
            };
            return items.iter().map(of_item).collect();
        }
        for (kind, collection) in [("configMap", "configmaps"), ("secret", "secrets")] {
            let Some(name) = source[kind]["name"].as_str() else { continue };
            let object = self.api.get(&format!("/api/v1/namespaces/{namespace}/{collection}/{name}")).await?;
            let data = object["data"].as_object().with_context(|| format!("{kind} {name} is empty"))?;
            let mut files = Vec::new();
            for (key, value) in data {
                let Some(path) = path_of(key, &source[kind]["items"]) else { continue };
                let text = value.as_str().unwrap_or_default();
                files.push(match kind {
                    "secret" => (path, BASE64_STANDARD.decode(text)?),
                    _ => (path, (self.adapt)(key, text.to_owned())?.into_bytes()),
                });
            }
            return Ok(files);
        }
        bail!("a source that is not known here: {source}")
    }

    fn namespace(&self) -> Result<&str> {
        self.pod["metadata"]["namespace"].as_str().context("a pod without a namespace")
    }

    /// A token of the pod's ServiceAccount that is bound to the pod, and so says on which node it runs.
    async fn token(&self, source: &Value) -> Result<(String, Vec<u8>)> {
        let namespace = self.namespace()?;
        let account = self.pod["spec"]["serviceAccountName"].as_str().context("no ServiceAccount")?;
        let audiences: Vec<_> = source["audience"].as_str().into_iter().collect();
        let metadata = &self.pod["metadata"];
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": source["expirationSeconds"],
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod",
                                   "name": metadata["name"], "uid": metadata["uid"]},
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.api.post(&path, &request).await?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        Ok((source["path"].as_str().context("a token without a path")?.to_owned(), token.into()))
    }
}

/// Where a key of an object goes: by the items, if there are any; `None` if it is not among them.
fn path_of(key: &str, items: &Value) -> Option<String> {
    let Some(items) = items.as_array() else { return Some(key.to_owned()) };
    let item = items.iter().find(|item| item["key"] == key)?;
    item["path"].as_str().map(str::to_owned)
}

pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

//! PersistentVolumes and VolumeAttachments of this driver, read from what `kubectl get -o json` printed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What Kubernetes has of the driver.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) volumes: Vec<PersistentVolume>,
    pub(super) attachments: Vec<VolumeAttachment>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    items: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    /// By the API server's clock, in one form for all: later ones are greater.
    #[serde(default)]
    pub(super) creation_timestamp: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PersistentVolume {
    pub(super) metadata: Metadata,
    pub(super) spec: VolumeSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeSpec {
    csi: Option<CsiSource>,
    #[serde(default)]
    pub(super) capacity: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) access_modes: Vec<String>,
    #[serde(default)]
    pub(super) volume_mode: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CsiSource {
    driver: String,
    pub(super) volume_handle: String,
    #[serde(default)]
    pub(super) fs_type: String,
    #[serde(default)]
    pub(super) read_only: bool,
    #[serde(default)]
    pub(super) volume_attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct VolumeAttachment {
    pub(super) metadata: Metadata,
    pub(super) spec: AttachmentSpec,
    #[serde(default)]
    pub(super) status: AttachmentStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AttachmentSpec {
    attacher: String,
    pub(super) node_name: String,
    source: AttachmentSource,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentSource {
    persistent_volume_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AttachmentStatus {
    #[serde(default)]
    pub(super) attached: bool,
    #[serde(default)]
    pub(super) attachment_metadata: BTreeMap<String, String>,
}

impl PersistentVolume {
    /// Its CSI source; of the driver's own there is one.
    pub(super) fn csi(&self) -> Option<&CsiSource> {
        self.spec.csi.as_ref()
    }
}

impl VolumeAttachment {
    pub(super) fn is_of(&self, volume: &PersistentVolume) -> bool {
        self.spec.source.persistent_volume_name.as_ref() == Some(&volume.metadata.name)
    }
}

impl Objects {
    /// Reads a list, or several one after the other. Both kinds have to be in it: what is not listed is not absent.
    pub(super) fn parse(file: &[u8], driver: &str) -> Result<Self, String> {
        let mut objects = Self::default();
        for list in serde_json::Deserializer::from_slice(file).into_iter::<List>() {
            let list = list.map_err(|error| format!("it is no list of objects in JSON: {error}"))?;
            for item in list.items {
                objects.take(item, driver)?;
            }
        }
        Ok(objects)
    }

    fn take(&mut self, item: Value, driver: &str) -> Result<(), String> {
        match item.get("kind").and_then(Value::as_str).unwrap_or_default() {
            "PersistentVolume" => {
                let volume: PersistentVolume = of_kind(item, "PersistentVolume")?;
                let is_ours = volume.csi().is_some_and(|csi| csi.driver == driver);
                self.volumes.extend(is_ours.then_some(volume));
            }
            "VolumeAttachment" => {
                let attachment: VolumeAttachment = of_kind(item, "VolumeAttachment")?;
                let is_ours = attachment.spec.attacher == driver;
                self.attachments.extend(is_ours.then_some(attachment));
            }
            other => {
                return Err(format!(
                    "it has an object of kind {other:?}; give what `kubectl get pv,volumeattachments -o json` prints"
                ));
            }
        }
        Ok(())
    }
}

fn of_kind<T: DeserializeOwned>(item: Value, kind: &str) -> Result<T, String> {
    let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
    serde_json::from_value(item).map_err(|error| format!("{kind} {name} cannot be understood: {error}"))
}

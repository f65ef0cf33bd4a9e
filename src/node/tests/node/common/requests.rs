//! Requests as kubelet writes them.

use std::path::Path;

use proto::csi::v1;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

/// The volume of most tests.
pub(crate) const VOLUME: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff001";
/// Its directory on the appliance.
pub(crate) const VOLUME_PATH: &str = "/pool/volumes";
/// The generation of its attachment.
pub(crate) const GENERATION: u64 = 42;

pub(crate) fn info() -> v1::NodeGetInfoRequest {
    v1::NodeGetInfoRequest {}
}

pub(crate) fn block(mode: Mode) -> v1::VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), mode)
}

pub(crate) fn file_system(fs_type: &str, flags: &[&str], mode: Mode) -> v1::VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mount = MountVolume { fs_type: fs_type.to_owned(), mount_flags, volume_mount_group: String::new() };
    capability(AccessType::Mount(mount), mode)
}

fn capability(access_type: AccessType, mode: Mode) -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn map<const N: usize>(entries: [(&str, String); N]) -> std::collections::BTreeMap<String, String> {
    entries.map(|(key, value)| (key.to_owned(), value)).into()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(crate) fn stage(staging: &Path, capability: v1::VolumeCapability) -> v1::NodeStageVolumeRequest {
    v1::NodeStageVolumeRequest {
        volume_id: VOLUME.to_owned(),
        publish_context: publish_context(),
        staging_target_path: text(staging),
        volume_capability: Some(capability),
        volume_context: map([("volumePath", VOLUME_PATH.to_owned())]),
        ..Default::default()
    }
}

pub(crate) fn publish_context() -> std::collections::BTreeMap<String, String> {
    map([
        ("nvme_address", "192.0.2.1".to_owned()),
        ("nvme_port", "4420".to_owned()),
        ("nvme_nqn", format!("nqn.2000-02.com.mikrotik:{VOLUME}")),
        ("fs_type", "ext4".to_owned()),
        ("generation", GENERATION.to_string()),
    ])
}

pub(crate) fn unstage(staging: &Path) -> v1::NodeUnstageVolumeRequest {
    v1::NodeUnstageVolumeRequest { volume_id: VOLUME.to_owned(), staging_target_path: text(staging) }
}

pub(crate) fn publish(
    staging: &Path,
    target: &Path,
    capability: v1::VolumeCapability,
    readonly: bool,
) -> v1::NodePublishVolumeRequest {
    v1::NodePublishVolumeRequest {
        volume_id: VOLUME.to_owned(),
        publish_context: publish_context(),
        staging_target_path: text(staging),
        target_path: text(target),
        volume_capability: Some(capability),
        readonly,
        ..Default::default()
    }
}

pub(crate) fn unpublish(target: &Path) -> v1::NodeUnpublishVolumeRequest {
    v1::NodeUnpublishVolumeRequest { volume_id: VOLUME.to_owned(), target_path: text(target) }
}

pub(crate) fn stats(path: &Path) -> v1::NodeGetVolumeStatsRequest {
    v1::NodeGetVolumeStatsRequest {
        volume_id: VOLUME.to_owned(),
        volume_path: text(path),
        staging_target_path: String::new(),
    }
}

pub(crate) fn expand(path: &Path, required_bytes: i64) -> v1::NodeExpandVolumeRequest {
    v1::NodeExpandVolumeRequest {
        volume_id: VOLUME.to_owned(),
        volume_path: text(path),
        capacity_range: Some(v1::CapacityRange { required_bytes, limit_bytes: 0 }),
        ..Default::default()
    }
}

//! A volume of a case, and its way through CSI as the sidecars and kubelet take it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateVolumeRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use tests::requests::{MIB, delete, insist_for, unpublish, within};
use tests::vm::VmLab;
use tonic::{Code, Status};

/// How long one call on a node may take, in milliseconds: kubelet's limit. Under emulation a format takes seconds.
const CALL_MS: u64 = 120_000;

/// How long a call is tried again while it says that it may pass, in milliseconds.
const PATIENCE_MS: u64 = 120_000;

/// What a volume is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file system on one node.
    Ext4,
    /// Another one.
    Xfs,
    /// A block device on one node.
    Block,
    /// A block device on two nodes while a VM migrates.
    SharedBlock,
}

impl Kind {
    fn capability(self) -> VolumeCapability {
        let mount = |fs_type: &str| {
            AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() })
        };
        let (access_type, mode) = match self {
            Self::Ext4 => (mount("ext4"), Mode::SingleNodeWriter),
            Self::Xfs => (mount("xfs"), Mode::SingleNodeWriter),
            Self::Block => (AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter),
            Self::SharedBlock => (AccessType::Block(BlockVolume {}), Mode::MultiNodeMultiWriter),
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access_type),
        }
    }

    /// The least size that a case needs, in bytes: mkfs.xfs takes no less than 300 MiB.
    pub(crate) fn size_bytes(self) -> i64 {
        match self {
            Self::Ext4 | Self::Block | Self::SharedBlock => 64 * MIB,
            Self::Xfs => 320 * MIB,
        }
    }
}

/// A volume that was created.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: String,
    kind: Kind,
    context: BTreeMap<String, String>,
    /// What each node that it is attached to was told.
    attached: BTreeMap<String, BTreeMap<String, String>>,
}

impl Volume {
    /// Creates a volume with the parameters of a class.
    pub(crate) async fn create(
        lab: &VmLab,
        name: &str,
        kind: Kind,
        parameters: &[(&str, &str)],
    ) -> Result<Self> {
        let controller = lab.controller()?;
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: kind.size_bytes(), limit_bytes: 0 }),
            volume_capabilities: vec![kind.capability()],
            parameters: parameters.collect(),
            ..CreateVolumeRequest::default()
        };
        let created = patiently("create", || controller.create(request.clone())).await?;
        let volume = created.volume.context("a volume was created, but not told")?;
        Ok(Self { id: volume.volume_id, kind, context: volume.volume_context, attached: BTreeMap::new() })
    }

    /// Where kubelet stages it.
    pub(crate) fn staging(&self) -> String {
        format!("/var/lib/kubelet/plugins/staging/{}", self.id)
    }

    /// Where it is for its pod: a directory, or a block device.
    pub(crate) fn target(&self) -> String {
        format!("/var/lib/kubelet/pods/{}/volume", self.id)
    }

    fn attachment(&self, node: &str) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(self.kind.capability()),
            volume_context: self.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    /// `ControllerPublishVolume`, once.
    pub(crate) async fn try_attach(&self, lab: &VmLab, node: &str) -> Result<Result<(), Status>> {
        Ok(lab.controller()?.publish(self.attachment(node)).await.map(drop))
    }

    /// `ControllerPublishVolume`, until it works.
    pub(crate) async fn attach(&mut self, lab: &VmLab, node: &str) -> Result<()> {
        let controller = lab.controller()?;
        let request = self.attachment(node);
        let published = patiently("attach", || controller.publish(request.clone())).await?;
        self.attached.insert(node.to_owned(), published.publish_context);
        Ok(())
    }

    /// `ControllerUnpublishVolume`.
    pub(crate) async fn detach(&mut self, lab: &VmLab, node: &str) -> Result<()> {
        let controller = lab.controller()?;
        patiently("detach", || controller.unpublish(unpublish(&self.id, node))).await?;
        self.attached.remove(node);
        Ok(())
    }

    fn publish_context(&self, node: &str) -> Result<BTreeMap<String, String>> {
        self.attached.get(node).cloned().with_context(|| format!("{} is not attached to {node}", self.id))
    }

    /// A call of `NodeStageVolume`. The directory is kubelet's to make.
    async fn staging_call(&self, lab: &VmLab, node: &str) -> Result<impl AsyncFn() -> Result<(), Status>> {
        lab.guest(node)?.run(&["mkdir", "-p", &self.staging()]).await?;
        let request = NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context(node)?,
            staging_target_path: self.staging(),
            volume_capability: Some(self.kind.capability()),
            volume_context: self.context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let client = lab.csi_node(node)?;
        Ok(async move || client.clone().node_stage_volume(limited(request.clone())).await.map(drop))
    }

    /// `NodeStageVolume`, once.
    pub(crate) async fn try_stage(&self, lab: &VmLab, node: &str) -> Result<Result<(), Status>> {
        Ok(self.staging_call(lab, node).await?().await)
    }

    /// `NodeStageVolume`, until it works.
    pub(crate) async fn stage(&self, lab: &VmLab, node: &str) -> Result<()> {
        let call = self.staging_call(lab, node).await?;
        patiently("stage", || call()).await
    }

    /// `NodePublishVolume`, until it works. The directory above the target is kubelet's to make.
    pub(crate) async fn publish(&self, lab: &VmLab, node: &str) -> Result<()> {
        let target = self.target();
        let parent = target.rsplit_once('/').map_or("/", |(parent, _)| parent);
        lab.guest(node)?.run(&["mkdir", "-p", parent]).await?;
        let request = NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context(node)?,
            staging_target_path: self.staging(),
            target_path: target,
            volume_capability: Some(self.kind.capability()),
            volume_context: self.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let client = lab.csi_node(node)?;
        patiently("publish", || {
            let (mut client, request) = (client.clone(), limited(request.clone()));
            async move { client.node_publish_volume(request).await.map(drop) }
        })
        .await
    }

    /// `NodeUnpublishVolume`, until it works.
    pub(crate) async fn unpublish(&self, lab: &VmLab, node: &str) -> Result<()> {
        let request = NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: self.target() };
        let client = lab.csi_node(node)?;
        patiently("unpublish", || {
            let (mut client, request) = (client.clone(), limited(request.clone()));
            async move { client.node_unpublish_volume(request).await.map(drop) }
        })
        .await
    }

    /// A call of `NodeUnstageVolume`.
    fn unstaging_call(&self, lab: &VmLab, node: &str) -> Result<impl AsyncFn() -> Result<(), Status>> {
        let request =
            NodeUnstageVolumeRequest { volume_id: self.id.clone(), staging_target_path: self.staging() };
        let client = lab.csi_node(node)?;
        Ok(async move || client.clone().node_unstage_volume(limited(request.clone())).await.map(drop))
    }

    /// `NodeUnstageVolume`, once.
    pub(crate) async fn try_unstage(&self, lab: &VmLab, node: &str) -> Result<Result<(), Status>> {
        Ok(self.unstaging_call(lab, node)?().await)
    }

    /// `NodeUnstageVolume`, until it works.
    pub(crate) async fn unstage(&self, lab: &VmLab, node: &str) -> Result<()> {
        let call = self.unstaging_call(lab, node)?;
        patiently("unstage", || call()).await
    }

    /// Attaches, stages and publishes it.
    pub(crate) async fn bring(&mut self, lab: &VmLab, node: &str) -> Result<()> {
        self.attach(lab, node).await?;
        self.stage(lab, node).await?;
        self.publish(lab, node).await
    }

    /// Unpublishes, unstages and detaches it; nothing of it may be left on the node.
    pub(crate) async fn take(&mut self, lab: &VmLab, node: &str) -> Result<()> {
        self.unpublish(lab, node).await?;
        self.unstage(lab, node).await?;
        self.expect_gone(lab, node).await?;
        self.detach(lab, node).await
    }

    /// Fails if the node has a connection to the volume, a mount of it, or something at its target.
    pub(crate) async fn expect_gone(&self, lab: &VmLab, node: &str) -> Result<()> {
        let script = r#"
            cat /sys/class/nvme/*/subsysnqn /sys/class/nvme-subsystem/*/subsysnqn 2>/dev/null | grep -- "$0" || true
            grep -- "$0" /proc/self/mountinfo || true
            ls -d "$1" 2>/dev/null || true"#;
        let found = lab.guest(node)?.run(&["sh", "-euc", script, &self.id, &self.target()]).await?;
        ensure!(found.is_empty(), "{} is left on {node}:\n{found}", self.id);
        Ok(())
    }

    /// The name of the volume's device on the node, as the kernel has it: `nvme1n1`.
    pub(crate) async fn device(&self, lab: &VmLab, node: &str) -> Result<String> {
        let script = r#"
            for subsystem in /sys/class/nvme-subsystem/*; do
                grep -q -- "$0\$" "$subsystem/subsysnqn" || continue
                ls "$subsystem" | grep -E '^nvme[0-9]+n[0-9]+$' && exit
            done
            exit 1"#;
        lab.guest(node)?.run(&["sh", "-euc", script, &self.id]).await
    }

    /// The name of its export.
    pub(crate) fn nqn(&self) -> Result<String> {
        self.context.get("nqn").cloned().context("the volume context has no nqn")
    }

    /// `ControllerExpandVolume`.
    pub(crate) async fn grow_export(&self, lab: &VmLab, size_bytes: i64) -> Result<()> {
        let range = Some(CapacityRange { required_bytes: size_bytes, limit_bytes: 0 });
        let controller = lab.controller()?;
        let request = ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: range,
            volume_capability: Some(self.kind.capability()),
            ..ControllerExpandVolumeRequest::default()
        };
        let expanded = patiently("expand", || controller.expand(request.clone())).await?;
        ensure!(expanded.node_expansion_required, "nodes are not asked to expand");
        Ok(())
    }

    /// `ControllerExpandVolume` and `NodeExpandVolume`.
    pub(crate) async fn grow(&self, lab: &VmLab, node: &str, size_bytes: i64) -> Result<()> {
        self.grow_export(lab, size_bytes).await?;
        let range = Some(CapacityRange { required_bytes: size_bytes, limit_bytes: 0 });
        let request = NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: self.target(),
            staging_target_path: self.staging(),
            capacity_range: range,
            volume_capability: Some(self.kind.capability()),
            ..NodeExpandVolumeRequest::default()
        };
        let client = lab.csi_node(node)?;
        patiently("expand on the node", || {
            let (mut client, request) = (client.clone(), limited(request.clone()));
            async move { client.node_expand_volume(request).await.map(drop) }
        })
        .await
    }

    /// `DeleteVolume`; the target must not serve it any more.
    pub(crate) async fn delete(self, lab: &VmLab) -> Result<()> {
        let controller = lab.controller()?;
        patiently("delete", || controller.delete(delete(&self.id))).await?;
        let served = lab.target().run(&["ls", "/sys/kernel/config/nvmet/subsystems"]).await?;
        ensure!(!served.contains(&self.id), "{} is still served", self.id);
        Ok(())
    }
}

fn limited<T>(message: T) -> tonic::Request<T> {
    within(Duration::from_millis(CALL_MS), message)
}

/// Calls again and again until it works, as kubelet does; an error that will not pass ends it.
async fn patiently<T, F>(what: &str, call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    insist_for(PATIENCE_MS, what, call).await
}

/// Fails unless the answer is FAILED_PRECONDITION with all of `words` in it.
pub(crate) fn expect_refused<T: std::fmt::Debug>(answer: Result<T, Status>, words: &[&str]) -> Result<()> {
    let Err(status) = &answer else { bail!("FAILED_PRECONDITION was expected: {answer:?}") };
    ensure!(status.code() == Code::FailedPrecondition, "FAILED_PRECONDITION was expected: {status}");
    for word in words {
        ensure!(status.message().contains(word), "{word:?} is not named: {status}");
    }
    Ok(())
}

//! Real block devices, file systems and mounts: the loop fabric, as root.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use node::{FabricConfig, NodeConfig};
use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_usage::Unit;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::common::gateway::{Gateway, Heard};
use crate::common::requests::{
    VOLUME, VOLUME_PATH, block, expand, file_system, publish, stage, stats, unpublish, unstage,
};
use crate::common::{TestNode, config, directory, refused, wait_for};

/// Size of the volume, in bytes: more than the least that mkfs.xfs accepts. The file is sparse.
const VOLUME_BYTES: u64 = 512 << 20;

/// A node over a directory of backing files.
pub(crate) struct Machine {
    pub(crate) node: TestNode,
    pub(crate) gateway: Gateway,
    pub(crate) image: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
    leftovers: Leftovers,
}

/// Unmounts and detaches what a failed test leaves behind, and then removes the directory.
struct Leftovers {
    directory: PathBuf,
    image: PathBuf,
    _guard: TempDir,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let paths = table.lines().rev().filter_map(|line| line.split(' ').nth(4));
        for path in paths.filter(|path| Path::new(path).starts_with(&self.directory)) {
            Command::new("umount").arg(path).status().ok();
        }
        for device in loop_devices(&self.image) {
            Command::new("losetup").arg("--detach").arg(device).status().ok();
        }
    }
}

impl Machine {
    pub(crate) async fn begin() -> Self {
        assert!(is_root(), "these tests make loop devices and mounts: run them as root");
        let (guard, directory) = directory();
        let gateway = Gateway::start().await;
        let backing_directory = directory.join("appliance");
        let volumes = backing_directory.join(VOLUME_PATH.trim_start_matches('/'));
        fs::create_dir_all(&volumes).unwrap();
        let image = volumes.join(format!("{VOLUME}.img"));
        File::create(&image).unwrap().set_len(VOLUME_BYTES).unwrap();
        let fabric = FabricConfig::Loop { backing_directory };
        let node = TestNode::start(NodeConfig { fabric, ..config(&directory, &gateway) }).await;
        let (staging, target) = (directory.join("staging"), directory.join("target"));
        fs::create_dir(&staging).unwrap();
        let leftovers = Leftovers { directory, image: image.clone(), _guard: guard };
        Self { node, gateway, image, staging, target, leftovers }
    }

    pub(crate) async fn stage(&mut self, capability: &VolumeCapability) -> Result<(), Status> {
        self.node.client.node_stage_volume(stage(&self.staging, capability.clone())).await.map(drop)
    }

    pub(crate) async fn unstage(&mut self) -> Result<(), Status> {
        self.node.client.node_unstage_volume(unstage(&self.staging)).await.map(drop)
    }

    pub(crate) async fn publish(
        &mut self,
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = publish(&self.staging, &self.target, capability.clone(), readonly);
        self.node.client.node_publish_volume(request).await.map(drop)
    }

    /// As kubelet does it, again while the target is busy: a process that another test has just forked holds the
    /// files that this one had open until it runs its own program.
    pub(crate) async fn unpublish(&mut self) -> Result<(), Status> {
        let mut answer = Ok(());
        wait_for("the target to be free", async || {
            let request = unpublish(&self.target);
            answer = self.node.client.node_unpublish_volume(request).await.map(drop);
            !answer.as_ref().is_err_and(|status| status.message().contains("target is busy"))
        })
        .await;
        answer
    }

    /// The volume's total as statistics have it, in bytes.
    async fn total_bytes(&mut self) -> u64 {
        let usage =
            self.node.client.node_get_volume_stats(stats(&self.target)).await.unwrap().into_inner().usage;
        u64::try_from(usage.iter().find(|usage| usage.unit() == Unit::Bytes).unwrap().total).unwrap()
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Growing a mounted ext4 takes CAP_SYS_RESOURCE, which some sandboxes keep even from root.
fn may_grow_ext4() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << CAP_SYS_RESOURCE) != 0
}

pub(crate) fn loop_devices(image: &Path) -> Vec<String> {
    let output = Command::new("losetup")
        .args(["--noheadings", "--output", "NAME", "--associated"])
        .arg(image)
        .output();
    let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn writer(fs_type: &str) -> VolumeCapability {
    file_system(fs_type, &["noatime"], Mode::SingleNodeWriter)
}

/// Bytes that are not all the same.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn an_ext4_volume_keeps_its_files() {
    keeps_its_files("ext4").await;
}

#[tokio::test]
async fn an_xfs_volume_keeps_its_files() {
    keeps_its_files("xfs").await;
}

async fn keeps_its_files(fs_type: &str) {
    let mut machine = Machine::begin().await;
    let capability = writer(fs_type);
    for _ in 0..2 {
        machine.stage(&capability).await.unwrap();
    }
    assert_eq!(loop_devices(&machine.image).len(), 1);
    for _ in 0..2 {
        machine.publish(&capability, false).await.unwrap();
    }
    let content = pattern(5 << 20);
    fs::write(machine.target.join("file"), &content).unwrap();
    // The user's own directory of the name that block volumes use for their links.
    fs::create_dir(machine.target.join("published")).unwrap();
    fs::write(machine.target.join("published/file"), "the user's").unwrap();
    let total = machine.total_bytes().await;
    assert!(total > VOLUME_BYTES / 2 && total < VOLUME_BYTES, "{total}");
    for _ in 0..2 {
        machine.unpublish().await.unwrap();
    }
    assert!(!machine.target.exists());
    for _ in 0..2 {
        machine.unstage().await.unwrap();
    }
    assert_eq!(loop_devices(&machine.image), Vec::<String>::new());

    machine.stage(&capability).await.unwrap();
    machine.publish(&capability, true).await.unwrap();
    assert!(fs::read(machine.target.join("file")).unwrap() == content, "the file changed");
    assert_eq!(fs::read_to_string(machine.target.join("published/file")).unwrap(), "the user's");
    let error = fs::write(machine.target.join("file"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    fs::write(machine.staging.join("other"), "only the target is read-only").unwrap();
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
    let heard = machine.gateway.heard();
    let permits = heard.iter().filter(|heard| matches!(heard, Heard::Permit(_))).count();
    assert_eq!((heard.len(), permits), (6, 3), "{heard:?}");
    machine.node.stop().await;
}

#[tokio::test]
async fn a_damaged_file_system_is_not_formatted() {
    for (fs_type, superblock_at) in [("ext4", 1024), ("xfs", 0)] {
        let mut machine = Machine::begin().await;
        machine.stage(&writer(fs_type)).await.unwrap();
        machine.unstage().await.unwrap();
        let image = File::options().write(true).open(&machine.image).unwrap();
        image.write_all_at(&[0; 1024], superblock_at).unwrap();
        let before = fs::read(&machine.image).unwrap();
        let words = ["not formatted", "no known signature, but data at byte"];
        refused(machine.stage(&writer(fs_type)).await, Code::FailedPrecondition, &words);
        assert!(fs::read(&machine.image).unwrap() == before, "the damaged file system was written to");
        assert_eq!(
            loop_devices(&machine.image),
            Vec::<String>::new(),
            "what failed to be staged is connected"
        );
        let heard = machine.gateway.heard();
        assert!(matches!(heard.last(), Some(Heard::Disconnected(_))), "{heard:?}");
    }
}

#[tokio::test]
async fn another_file_system_or_a_partition_table_is_not_formatted() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    machine.unstage().await.unwrap();
    refused(
        machine.stage(&writer("xfs")).await,
        Code::FailedPrecondition,
        &["it has ext4, xfs is asked for"],
    );
    machine.unstage().await.unwrap();
    let image = File::options().write(true).open(&machine.image).unwrap();
    image.write_all_at(&[0; 8 << 20], 0).unwrap();
    // A master boot record with one Linux partition.
    image.write_all_at(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], 446).unwrap();
    image.write_all_at(&[0x55, 0xaa], 510).unwrap();
    refused(machine.stage(&writer("ext4")).await, Code::FailedPrecondition, &["not formatted", "dos"]);
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_block_volume_is_a_device_node() {
    let mut machine = Machine::begin().await;
    let rwx = block(Mode::MultiNodeMultiWriter);
    machine.stage(&rwx).await.unwrap();
    for _ in 0..2 {
        machine.publish(&rwx, false).await.unwrap();
    }
    let metadata = fs::metadata(&machine.target).unwrap();
    let device = fs::metadata(&loop_devices(&machine.image)[0]).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!(metadata.rdev(), device.rdev());
    assert_eq!(machine.total_bytes().await, VOLUME_BYTES);

    let content = pattern(1 << 20);
    let file = File::options().read(true).write(true).open(&machine.target).unwrap();
    file.write_all_at(&content, 4096).unwrap();
    file.sync_all().unwrap();
    machine.unpublish().await.unwrap();
    assert!(!machine.target.exists());
    let pid = std::process::id().to_string();
    refused(machine.unstage().await, Code::FailedPrecondition, &["stays connected", "process", &pid]);
    assert_eq!(loop_devices(&machine.image).len(), 1);
    drop(file);
    machine.unstage().await.unwrap();
    assert_eq!(fs::read_dir(&machine.staging).unwrap().count(), 0);
    let mut stored = vec![0; content.len()];
    File::open(&machine.image).unwrap().read_exact_at(&mut stored, 4096).unwrap();
    assert!(stored == content, "the appliance has something else");

    machine.stage(&rwx).await.unwrap();
    machine.publish(&rwx, true).await.unwrap();
    assert_eq!(fs::metadata(&machine.target).unwrap().permissions().mode() & 0o222, 0);
    refused(machine.publish(&rwx, false).await, Code::AlreadyExists, &["read-only"]);
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn another_device_at_the_target_is_no_publish() {
    let mut machine = Machine::begin().await;
    let rwx = block(Mode::MultiNodeMultiWriter);
    machine.stage(&rwx).await.unwrap();
    // A node of the first RAM disk's or, failing that, of a floppy's number: not this volume's.
    assert!(Command::new("mknod").arg(&machine.target).args(["b", "2", "0"]).status().unwrap().success());
    let foreign = fs::metadata(&machine.target).unwrap().rdev();
    if Path::new("/sys/dev/block/2:0").exists() {
        refused(machine.publish(&rwx, false).await, Code::FailedPrecondition, &["another device"]);
        machine.unpublish().await.unwrap();
    }
    machine.publish(&rwx, false).await.unwrap();
    assert_ne!(
        fs::metadata(&machine.target).unwrap().rdev(),
        foreign,
        "a dead device's node was taken for ours"
    );
    fs::remove_file(&machine.target).unwrap();
    fs::create_dir(&machine.target).unwrap();
    refused(machine.publish(&rwx, false).await, Code::FailedPrecondition, &["left alone"]);
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn who_uses_the_file_system_keeps_it_staged() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    let open = File::create(machine.staging.join("open")).unwrap();
    refused(machine.unstage().await, Code::FailedPrecondition, &["stays mounted", "busy"]);
    drop(open);

    // Mounted a second time, where kubelet does not know of it.
    let elsewhere = machine.leftovers.directory.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let device = loop_devices(&machine.image).remove(0);
    assert!(Command::new("mount").arg(&device).arg(&elsewhere).status().unwrap().success());
    refused(machine.unstage().await, Code::FailedPrecondition, &["in use", elsewhere.to_str().unwrap()]);
    assert!(Command::new("umount").arg(&elsewhere).status().unwrap().success());
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_mount_in_another_namespace_keeps_it_connected() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    // Its own copy of all mounts, less those of the tests that run beside this one, which it would keep from
    // unstaging; reading tells when it has it, and closing its input ends it.
    let script = "cut -d' ' -f5 /proc/self/mountinfo | grep \"^$1/\" | grep -v \"^$2/\" | xargs -r umount --lazy; \
                  echo here; read line";
    let own = &machine.leftovers.directory;
    let mut other = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([own.parent().unwrap(), own.as_path()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    other.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    let answer = machine.unstage().await;
    drop(other.stdin.take());
    other.wait().unwrap();
    refused(
        answer,
        Code::FailedPrecondition,
        &["stays connected", "mounted at", "in the mount namespace of process"],
    );
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn another_loop_device_over_it_keeps_it_connected() {
    let mut machine = Machine::begin().await;
    machine.stage(&block(Mode::SingleNodeWriter)).await.unwrap();
    let device = loop_devices(&machine.image).remove(0);
    let output = Command::new("losetup").args(["--find", "--show"]).arg(&device).output().unwrap();
    let upper = String::from_utf8(output.stdout).unwrap();
    let answer = machine.unstage().await;
    let detached = Command::new("losetup").arg("--detach").arg(upper.trim()).status();
    // No table has such a user, but the kernel knows it, and keeps the device.
    refused(answer, Code::FailedPrecondition, &["still connected", "somebody holds it"]);
    assert!(detached.unwrap().success());
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_foreign_mount_is_left_alone() {
    let mut machine = Machine::begin().await;
    fs::create_dir(&machine.target).unwrap();
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&machine.target).status().unwrap().success()
    );
    fs::write(machine.target.join("file"), "somebody's").unwrap();
    // Its device number is no block device's, and that must not read as a device that is gone.
    refused(machine.unpublish().await, Code::FailedPrecondition, &["another device"]);
    assert_eq!(fs::read_to_string(machine.target.join("file")).unwrap(), "somebody's");
}

#[tokio::test]
async fn a_foreign_mount_at_the_staging_path_is_left_alone() {
    let mut machine = Machine::begin().await;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&machine.staging).status();
    assert!(mounted.unwrap().success());
    fs::write(machine.staging.join("file"), "somebody's").unwrap();
    refused(machine.stage(&writer("ext4")).await, Code::FailedPrecondition, &["another device"]);
    assert_eq!(loop_devices(&machine.image), Vec::<String>::new(), "what failed to be staged is connected");
    assert_eq!(fs::read_to_string(machine.staging.join("file")).unwrap(), "somebody's");
    assert!(matches!(machine.gateway.heard().as_slice(), [Heard::Permit(_), Heard::Disconnected(_)]));
}

#[tokio::test]
async fn file_systems_grow_while_they_are_used() {
    for fs_type in ["ext4", "xfs"] {
        let mut machine = Machine::begin().await;
        machine.stage(&writer(fs_type)).await.unwrap();
        machine.publish(&writer(fs_type), false).await.unwrap();
        let before = machine.total_bytes().await;
        let request = || expand(&machine.target, 1 << 30);
        let answer = machine.node.client.node_expand_volume(request()).await;
        refused(answer, Code::Unavailable, &["536870912 bytes on this node, 1073741824 are wanted"]);
        File::options().write(true).open(&machine.image).unwrap().set_len(1 << 30).unwrap();
        for _ in 0..2 {
            let answer = machine.node.client.node_expand_volume(request()).await;
            if fs_type == "ext4" && !may_grow_ext4() {
                refused(answer, Code::Internal, &["resize2fs failed", "Permission denied"]);
                continue;
            }
            assert_eq!(answer.unwrap().into_inner().capacity_bytes, 1 << 30);
        }
        if fs_type == "ext4" && !may_grow_ext4() {
            machine.unpublish().await.unwrap();
            machine.unstage().await.unwrap();
            continue;
        }
        let after = machine.total_bytes().await;
        assert!(after > before + (400 << 20), "{fs_type} grew from {before} to {after} only");
        machine.unpublish().await.unwrap();
        machine.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn without_its_backing_file_a_volume_is_unreachable() {
    let mut machine = Machine::begin().await;
    fs::remove_file(&machine.image).unwrap();
    refused(machine.stage(&writer("ext4")).await, Code::Unavailable, &["cannot connect", "No such file"]);
    machine.unstage().await.unwrap();

    // A file that is deleted while it is connected does not make the volume look absent.
    File::create(&machine.image).unwrap().set_len(VOLUME_BYTES).unwrap();
    machine.stage(&block(Mode::SingleNodeWriter)).await.unwrap();
    let device = loop_devices(&machine.image).remove(0);
    fs::remove_file(&machine.image).unwrap();
    let held = File::open(&device).unwrap();
    refused(machine.unstage().await, Code::FailedPrecondition, &["stays connected"]);
    drop(held);
    machine.unstage().await.unwrap();
    let name = device.trim_start_matches("/dev/");
    assert!(!Path::new("/sys/block").join(name).join("loop").exists(), "{device} is still attached");
}

#[tokio::test]
async fn a_read_only_publish_that_was_interrupted_is_completed() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    // The first half of `mount -o bind,ro`.
    fs::create_dir(&machine.target).unwrap();
    let bound = Command::new("mount").arg("--bind").arg(&machine.staging).arg(&machine.target).status();
    assert!(bound.unwrap().success());
    machine.publish(&writer("ext4"), true).await.unwrap();
    File::create(machine.staging.join("file")).unwrap();
    assert!(File::create(machine.target.join("other")).is_err(), "the target can be written");
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

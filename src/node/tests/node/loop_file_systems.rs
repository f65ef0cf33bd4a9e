//! File systems that are not as they should be, made with the real tools and met by the real kernel.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proto::csi::v1::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::common::refused;
use crate::common::requests::{block, expand, file_system};
use crate::loop_device::{Machine, loop_devices, writer};

/// `O_EXCL`: open(2).
const EXCLUSIVELY: i32 = 0o200;

/// Runs a tool on the image, which no device has.
#[track_caller]
fn on_image(machine: &Machine, tool: &str, arguments: &[&str]) {
    assert_eq!(loop_devices(&machine.image), Vec::<String>::new());
    let output = Command::new(tool).args(arguments).arg(&machine.image).output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The options of the mount in force at `path`.
fn mount_options(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut mounts = table.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|fields| Path::new(fields[4]) == path).unwrap();
    mount[5].split(',').map(str::to_owned).collect()
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|mounted| Path::new(mounted) == path))
}

/// A machine whose image is as a crash leaves it: copied while it was mounted and a file had just been written.
async fn after_a_crash(fs_type: &str) -> Machine {
    let mut machine = Machine::begin().await;
    if fs_type == "ext4" {
        // So that the kernel initializes nothing in the background while the image is copied.
        on_image(&machine, "mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    }
    machine.stage(&writer(fs_type)).await.unwrap();
    let file = File::create(machine.staging.join("file")).unwrap();
    file.write_all_at(b"written before the crash", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let copy = machine.image.with_extension("copy");
    let copied = Command::new("cp").arg("--sparse=always").arg(&machine.image).arg(&copy).status();
    assert!(copied.unwrap().success());
    machine.unstage().await.unwrap();
    fs::rename(copy, &machine.image).unwrap();
    machine
}

#[tokio::test]
async fn a_crash_leaves_a_file_system_that_is_recovered() {
    for fs_type in ["ext4", "xfs"] {
        let mut machine = after_a_crash(fs_type).await;
        machine.stage(&writer(fs_type)).await.unwrap();
        let text = fs::read_to_string(machine.staging.join("file")).unwrap();
        assert_eq!(text, "written before the crash", "{fs_type}");
        machine.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_sees_the_recovered_state_as_well() {
    for fs_type in ["ext4", "xfs"] {
        let mut machine = after_a_crash(fs_type).await;
        machine.stage(&file_system(fs_type, &[], Mode::SingleNodeReaderOnly)).await.unwrap();
        let text = fs::read_to_string(machine.staging.join("file")).unwrap();
        assert_eq!(text, "written before the crash", "{fs_type}");
        assert_eq!(mount_options(&machine.staging)[0], "ro");
        machine.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn an_ext4_with_logged_errors_is_checked_before_it_is_mounted() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    machine.unstage().await.unwrap();
    // The kernel has noted an error, and a count is wrong: preening mends it.
    on_image(&machine, "debugfs", &["-w", "-R", "set_super_value free_inodes_count 3"]);
    on_image(&machine, "debugfs", &["-w", "-R", "set_super_value state 2"]);
    machine.stage(&writer("ext4")).await.unwrap();
    machine.unstage().await.unwrap();
    on_image(&machine, "e2fsck", &["-n", "-f"]);

    // Without its root it needs a decision.
    on_image(&machine, "debugfs", &["-w", "-R", "clri <2>"]);
    on_image(&machine, "debugfs", &["-w", "-R", "set_super_value state 2"]);
    let words = ["not mended without a person's decision", "repair it by hand with e2fsck", "not formatted"];
    refused(machine.stage(&writer("ext4")).await, Code::FailedPrecondition, &words);
    assert_eq!(loop_devices(&machine.image), Vec::<String>::new(), "what failed to be staged is connected");
}

#[tokio::test]
async fn a_damaged_xfs_is_for_xfs_repair() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("xfs")).await.unwrap();
    machine.unstage().await.unwrap();
    // The headers of the first allocation group, behind the superblock.
    let image = File::options().write(true).open(&machine.image).unwrap();
    image.write_all_at(&[0; 1536], 512).unwrap();
    let words = ["cannot be mounted as it is", "repair it by hand with xfs_repair", "not formatted"];
    refused(machine.stage(&writer("xfs")).await, Code::FailedPrecondition, &words);
    assert_eq!(loop_devices(&machine.image), Vec::<String>::new());
}

#[tokio::test]
async fn what_somebody_is_formatting_is_not_looked_at() {
    let mut machine = Machine::begin().await;
    machine.stage(&block(Mode::SingleNodeWriter)).await.unwrap();
    // As a formatting tool has it that outlived the plugin which started it.
    let device = loop_devices(&machine.image).remove(0);
    let tool = OpenOptions::new().read(true).write(true).custom_flags(EXCLUSIVELY).open(&device).unwrap();
    refused(machine.stage(&writer("ext4")).await, Code::Unavailable, &["held exclusively", "try again"]);
    assert_eq!(loop_devices(&machine.image).len(), 1, "it was disconnected under its user");
    drop(tool);
    machine.stage(&writer("ext4")).await.unwrap();
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_mount_that_is_in_use_is_staged_again_as_it_is() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("ext4")).await.unwrap();
    let open = File::create(machine.staging.join("open")).unwrap();
    machine.stage(&writer("ext4")).await.unwrap();
    machine.publish(&writer("ext4"), false).await.unwrap();
    machine.publish(&writer("ext4"), false).await.unwrap();
    drop(open);
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_read_only_target_keeps_the_flags_of_its_mount() {
    let mut machine = Machine::begin().await;
    let capability = file_system("ext4", &["nosuid", "nodev", "noatime"], Mode::SingleNodeWriter);
    machine.stage(&capability).await.unwrap();
    // Also where publishing asks for none of them.
    machine.publish(&file_system("ext4", &[], Mode::SingleNodeWriter), true).await.unwrap();
    let options = mount_options(&machine.target);
    for flag in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(options.iter().any(|option| option == flag), "{flag} is not in {options:?}");
    }
    assert_eq!(mount_options(&machine.staging)[0], "rw");
    machine.unpublish().await.unwrap();

    // Programs can be run from a volume unless the capability says otherwise.
    machine.publish(&capability, false).await.unwrap();
    let program = machine.target.join("true");
    fs::copy("/bin/true", &program).unwrap();
    assert!(runs(&program));
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

/// Whether the program can be run: again while another test's process, just forked, still has it open for writing.
fn runs(program: &Path) -> bool {
    let until = std::time::Instant::now() + crate::common::PATIENCE;
    loop {
        match Command::new(program).status() {
            Ok(status) => return status.success(),
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                assert!(std::time::Instant::now() < until, "{error}");
                std::thread::yield_now();
            }
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn a_device_node_that_is_bound_to_the_target_is_replaced_and_taken_away() {
    let mut machine = Machine::begin().await;
    let rwx = block(Mode::MultiNodeMultiWriter);
    machine.stage(&rwx).await.unwrap();
    // Another driver's way to publish: a file over which a device node is mounted.
    let target = machine.target.clone();
    let bind = |node: &Path| {
        File::create(&target).unwrap();
        let bound = Command::new("mount").arg("--bind").arg(node).arg(&target).status();
        assert!(bound.unwrap().success());
    };
    bind(Path::new(&loop_devices(&machine.image)[0]));
    machine.publish(&rwx, false).await.unwrap();
    assert!(is_mounted(&target), "it is the volume's device, and was published");
    machine.unpublish().await.unwrap();
    assert!(!target.exists());

    // One whose number is no device's.
    let dead = PathBuf::from(format!("/dev/rds-csi-test-{}", std::process::id()));
    assert!(Command::new("mknod").arg(&dead).args(["b", "250", "77"]).status().unwrap().success());
    bind(&dead);
    fs::remove_file(&dead).unwrap();
    machine.publish(&rwx, false).await.unwrap();
    assert!(!is_mounted(&target), "the dead node is still mounted there");
    let device = fs::metadata(&loop_devices(&machine.image)[0]).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().rdev(), device.rdev());
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

#[tokio::test]
async fn a_device_that_has_shrunk_is_not_grown_into() {
    let mut machine = Machine::begin().await;
    machine.stage(&writer("xfs")).await.unwrap();
    machine.publish(&writer("xfs"), false).await.unwrap();
    let image = File::options().write(true).open(&machine.image).unwrap();
    let size_bytes = image.metadata().unwrap().len();
    image.set_len(size_bytes - (64 << 20)).unwrap();
    let answer = machine.node.client.node_expand_volume(expand(&machine.target, 0)).await;
    refused(answer, Code::FailedPrecondition, &["has shrunk", "backup"]);
    image.set_len(size_bytes).unwrap();
    machine.unpublish().await.unwrap();
    machine.unstage().await.unwrap();
}

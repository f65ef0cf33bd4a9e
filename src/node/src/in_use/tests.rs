//! The in-use check on simulated machines.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::simulated::{OWN_PID, SimulatedBlockDevices, SimulatedMachine};
use super::*;

const NUMBER: Number = (259, 1);

struct Setting {
    machine: SimulatedMachine,
    blocks: Arc<SimulatedBlockDevices>,
}

impl Setting {
    /// A machine with one device, which has a partition.
    fn new() -> Self {
        let machine = SimulatedMachine::new();
        machine.block_device("sys/devices/subsystem", "nvme0n1", "259:1", 2048);
        machine.block_device("sys/devices/subsystem/nvme0n1", "nvme0n1p1", "259:2", 1024);
        machine.write("sys/devices/subsystem/nvme0n1/nvme0n1p1/partition", "1\n");
        machine.block_device("sys/devices/other", "nvme9n1", "259:9", 2048);
        Self { machine, blocks: Arc::default() }
    }

    fn node(&self) -> PathBuf {
        self.machine.path("dev/nvme0n1")
    }

    fn partition(&self) -> PathBuf {
        self.machine.path("dev/nvme0n1p1")
    }

    /// One look, and what it says.
    fn look(&self, thoroughness: Thoroughness) -> Result<Vec<String>, String> {
        let roots = self.machine.roots();
        let check = Check { roots, thoroughness, blocks: self.blocks.clone() };
        match check.look(&self.node(), NUMBER).map_err(|error| error.to_string())? {
            Claimed::Free(_) => Ok(Vec::new()),
            Claimed::Held(holders) => Ok(holders),
        }
    }

    #[track_caller]
    fn held_by(&self, holders: &[&str]) {
        assert_eq!(self.look(Thoroughness::Complete).unwrap(), holders);
        assert_eq!(*self.blocks.flushes.lock().unwrap(), 0, "a held device is written out by its users");
    }

    /// The look is refused, and says all of `words`.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let reason = self.look(Thoroughness::Complete).expect_err("this had to be refused");
        for word in words {
            assert!(reason.contains(word), "{word:?} is not in {reason:?}");
        }
    }
}

#[test]
fn a_device_that_nobody_holds_is_claimed_and_written_out() {
    let setting = Setting::new();
    let other = setting.machine.path("dev/nvme9n1");
    setting.machine.process(7, "qemu-kvm", &[&other, Path::new("socket:[1]"), Path::new("/gone")]);
    assert_eq!(setting.look(Thoroughness::Complete).unwrap(), Vec::<String>::new());
    assert_eq!(*setting.blocks.flushes.lock().unwrap(), 1);
    *setting.blocks.unwritable.lock().unwrap() = Some(Errno::PERM);
    setting.refused(&["what was written to", "last stays there"]);
    *setting.blocks.unwritable.lock().unwrap() = Some(Errno::IO);
    assert_eq!(setting.look(Thoroughness::Complete).unwrap(), Vec::<String>::new(), "nobody can write it");
}

#[test]
fn descriptors_are_found_by_number() {
    let setting = Setting::new();
    setting.machine.node("renamed", "block 259:1");
    let renamed = setting.machine.path("dev/renamed");
    setting.machine.process(7, "qemu-kvm", &[Path::new("socket:[1]"), &renamed]);
    setting.held_by(&["process 7 (qemu-kvm)"]);
}

#[test]
fn a_partition_is_the_device() {
    let setting = Setting::new();
    setting.machine.process(7, "dd", &[&setting.partition()]);
    setting.held_by(&["process 7 (dd)"]);

    let setting = Setting::new();
    let line = "9 1 259:2 / /data rw - ext4 /dev/nvme0n1p1 rw\n";
    setting.machine.write("proc/1/mountinfo", line);
    setting.machine.write(&format!("proc/{OWN_PID}/mountinfo"), line);
    setting.held_by(&["mounted at /data in the mount namespace of process 1 (systemd)"]);

    let setting = Setting::new();
    setting.machine.write("sys/devices/subsystem/nvme0n1/nvme0n1p1/holders/dm-3", "");
    setting.held_by(&["dm-3"]);
}

#[test]
fn a_mount_counts_in_whatever_namespace() {
    let setting = Setting::new();
    setting.machine.process(77, "node-exporter", &[]);
    let namespace = setting.machine.path("proc/77/ns/mnt");
    fs::remove_file(&namespace).unwrap();
    symlink("mnt:[4026532999]", namespace).unwrap();
    setting.machine.write(
        "proc/77/mountinfo",
        "1 0 254:0 / / rw - ext4 /dev/vda rw\n9 1 259:1 / /host/a\\040b ro,noatime master:1 - xfs  rw\n",
    );
    setting.held_by(&["mounted at /host/a\\040b in the mount namespace of process 77 (node-exporter)"]);
    setting.machine.write("proc/77/mountinfo", "1 0 here\n");
    setting.refused(&["proc/77", "unreadable line"]);
}

#[test]
fn the_kernels_own_users_are_named() {
    let setting = Setting::new();
    setting.machine.write("sys/devices/subsystem/nvme0n1/holders/dm-3", "");
    setting.held_by(&["dm-3"]);

    let setting = Setting::new();
    let (node, partition) = (setting.node(), setting.partition());
    let swaps = format!(
        "Filename Type Size Used Priority\n/swapfile file 1 0 -2\n{} partition 1 0 -3\n/gone partition 1 0 -4\n",
        partition.display()
    );
    setting.machine.write("proc/swaps", &swaps);
    setting.held_by(&[&format!("swap on {}", partition.display())]);
    setting.machine.write("proc/swaps", "Filename Type Size Used Priority\nunreadable\n");
    setting.refused(&["swaps reads"]);

    // A loop device goes by any name: what it lies over is asked for.
    let setting = Setting::new();
    for (name, over) in [("loop3", "over 259:9"), ("loop4", "over 259:1"), ("loop5", "")] {
        setting.machine.write(&format!("sys/block/{name}/loop/backing_file"), "/whatever\n");
        setting.machine.node(name, &format!("block 7:0\n{over}\n"));
    }
    setting.machine.write("sys/block/loop6/size", "0\n");
    setting.held_by(&[&setting.machine.path("dev/loop4").display().to_string()]);
    fs::remove_file(setting.machine.path("dev/loop3")).unwrap();
    setting.refused(&["dev/loop3"]);

    let setting = Setting::new();
    setting.blocks.unclaimable.lock().unwrap().insert(node.clone(), Errno::BUSY);
    setting.blocks.unclaimable.lock().unwrap().insert(setting.node(), Errno::BUSY);
    let holders = setting.look(Thoroughness::Complete).unwrap();
    assert!(holders.len() == 1 && holders[0].starts_with("the kernel (a mount"), "{holders:?}");
}

#[test]
fn a_dead_device_is_claimed_by_nobody_but_still_looked_for() {
    for errno in [Errno::IO, Errno::NXIO, Errno::NODEV] {
        let setting = Setting::new();
        setting.blocks.unclaimable.lock().unwrap().insert(setting.node(), errno);
        assert_eq!(setting.look(Thoroughness::Complete).unwrap(), Vec::<String>::new(), "{errno}");
        setting.machine.process(7, "qemu-kvm", &[&setting.node()]);
        setting.held_by(&["process 7 (qemu-kvm)"]);
    }
    for errno in [Errno::ACCESS, Errno::PERM, Errno::NOENT] {
        let setting = Setting::new();
        setting.blocks.unclaimable.lock().unwrap().insert(setting.node(), errno);
        setting.refused(&["dev/nvme0n1"]);
    }
}

#[test]
fn processes_come_and_go() {
    let setting = Setting::new();
    // Ended between the two looks; a kernel thread; a name that is no process.
    fs::create_dir(setting.machine.path("proc/9")).unwrap();
    setting.machine.process(10, "kworker/0:1", &[]);
    fs::create_dir(setting.machine.path("proc/sys")).unwrap();
    assert_eq!(setting.look(Thoroughness::Complete).unwrap(), Vec::<String>::new());
    // The first thread has ended, and its descriptors with it, while another goes on.
    let setting = Setting::new();
    setting.machine.process(11, "qemu-kvm", &[]);
    setting.machine.link("proc/11/task/12/fd/5", &setting.node());
    setting.held_by(&["process 11 (qemu-kvm)"]);
}

#[test]
fn the_own_claim_is_no_holder_but_another_descriptor_is() {
    let setting = Setting::new();
    let check = Check {
        roots: setting.machine.roots(),
        thoroughness: Thoroughness::Complete,
        blocks: setting.blocks.clone(),
    };
    let claim = setting.blocks.claim(&setting.node()).unwrap();
    setting.machine.link(&format!("proc/{OWN_PID}/fd/{}", claim.as_raw_fd()), &setting.node());
    let own = || vec![(NUMBER, format!("process {OWN_PID} (rds-csi)"))];
    assert_eq!(check.processes(&[NUMBER], Some(&claim)).unwrap(), []);
    assert_eq!(check.processes(&[NUMBER], None).unwrap(), own());
    setting.machine.link(&format!("proc/{OWN_PID}/fd/999"), &setting.node());
    assert_eq!(check.processes(&[NUMBER], Some(&claim)).unwrap(), own());
}

#[test]
fn what_cannot_be_seen_is_a_refusal() {
    // Another PID namespace.
    let setting = Setting::new();
    let namespace = setting.machine.path("proc/1/ns/pid");
    fs::remove_file(&namespace).unwrap();
    setting.refused(&["1/ns/pid"]);
    symlink("pid:[4026532555]", namespace).unwrap();
    setting.refused(&["does not show all processes", "hostPID: true"]);
    assert_eq!(setting.look(Thoroughness::Lenient).unwrap(), Vec::<String>::new());

    // A process' descriptors that cannot be listed.
    let setting = Setting::new();
    setting.machine.write("proc/8/fd", "no directory");
    setting.refused(&["proc/8"]);

    let setting = Setting::new();
    fs::remove_file(setting.machine.path("proc/swaps")).unwrap();
    assert_eq!(setting.look(Thoroughness::Complete).unwrap(), Vec::<String>::new(), "a kernel without swap");
    fs::create_dir(setting.machine.path("proc/swaps")).unwrap();
    setting.refused(&["proc/swaps"]);

    let setting = Setting::new();
    fs::remove_dir_all(setting.machine.path("sys/dev")).unwrap();
    setting.refused(&["sys/dev/block"]);

    // A node of that name, in a /dev that is not the machine's.
    let setting = Setting::new();
    setting.machine.node("nvme0n1", "block 259:7");
    setting.refused(&["is not the device 259:1", "host's device nodes"]);
}

#[test]
fn a_process_that_may_not_be_looked_into_is_named() {
    // Permissions do not stop root, so the refusal is made up of what the look says.
    let unseen = vec!["process 5 (kubelet)".to_owned(); MAX_NAMED + 2];
    assert_eq!(named(unseen).last().unwrap(), "2 more");
    let setting = Setting::new();
    let denied = DeniedProcess(setting.machine.path("proc/8/fd/0"));
    setting.machine.process(8, "secret", &[&setting.node()]);
    let check = |thoroughness| Check {
        roots: setting.machine.roots(),
        thoroughness,
        blocks: Arc::new(DeniedProcess(denied.0.clone())),
    };
    let refusal = check(Thoroughness::Complete).processes(&[NUMBER], None).unwrap_err().to_string();
    assert!(refusal.contains("process 8 (secret) may not be looked into"), "{refusal}");
    assert_eq!(check(Thoroughness::Lenient).processes(&[NUMBER], None).unwrap(), []);
}

#[test]
fn a_file_system_that_has_failed_keeps_no_other_volume_connected() {
    let setting = Setting::new();
    let denied = setting.machine.path("proc/8/fd/0");
    setting.machine.process(8, "logger", &[Path::new("/var/lib/app/log")]);
    let look = || {
        let check = Check {
            roots: setting.machine.roots(),
            thoroughness: Thoroughness::Complete,
            blocks: Arc::new(DeniedProcess(denied.clone())),
        };
        check.processes(&[NUMBER], None)
    };
    assert!(look().is_err(), "it is on the machine's root");
    let root = "1 0 254:0 / / rw - ext4 /dev/vda rw\n";
    for (mount, seen) in [
        ("2 1 259:7 / /var/lib/app rw - xfs /dev/nvme7n1 rw\n", true),
        ("2 1 0:31 / /dev rw - tmpfs tmpfs rw\n", false),
        ("3 1 259:7 / /var/lib/app rw - xfs /dev/nvme7n1 rw\n", false),
    ] {
        setting.machine.write("proc/8/mountinfo", &format!("{root}{mount}"));
        setting.machine.write("proc/8/fdinfo/0", "pos:\t0\nmnt_id:\t2\n");
        assert_eq!(look().is_ok(), seen, "{mount}");
    }
}

/// A machine on which one descriptor may not be looked at.
struct DeniedProcess(PathBuf);

impl BlockDevices for DeniedProcess {
    fn number_of(&self, path: &Path) -> io::Result<Option<Number>> {
        if path == self.0 { Err(Errno::ACCESS.into()) } else { Ok(None) }
    }

    fn claim(&self, _device: &Path) -> io::Result<OwnedFd> {
        Err(Errno::ACCESS.into())
    }

    fn flush(&self, _claim: &OwnedFd) -> io::Result<()> {
        Ok(())
    }

    fn backing_of(&self, _loop_device: &Path) -> io::Result<Option<Number>> {
        Ok(None)
    }
}

#[tokio::test]
async fn a_holder_that_passes_is_waited_for() {
    let setting = Setting::new();
    setting.machine.process(7, "udevd", &[&setting.node()]);
    let in_use =
        InUse::new(setting.machine.roots(), Thoroughness::Complete, setting.blocks.clone() as Arc<_>);
    let node = setting.node();
    let (looked, ()) = tokio::join!(in_use.claim(&node, NUMBER), async {
        sleep(Duration::from_millis(2 * LOOK_AGAIN_MS)).await;
        fs::remove_file(setting.machine.path("proc/7/fd/0")).unwrap();
    });
    assert!(matches!(looked, Ok(Claimed::Free(_))), "{looked:?}");
    setting.machine.process(8, "qemu-kvm", &[&node]);
    let Ok(Claimed::Held(holders)) = in_use.claim(&node, NUMBER).await else { panic!("it is held") };
    assert_eq!(holders, ["process 8 (qemu-kvm)"]);
    // A look that hangs is not joined by others.
    let hanging = in_use.looks.begin(NUMBER).unwrap();
    let refusal = in_use.claim(&node, NUMBER).await.unwrap_err().to_string();
    assert!(refusal.contains("still hangs"), "{refusal}");
    drop(hanging);
    assert!(in_use.claim(&node, NUMBER).await.is_ok());
}

#[test]
fn a_survey_tells_whose_device_is_held_and_claims_nothing() {
    let setting = Setting::new();
    let other = setting.machine.path("dev/nvme9n1");
    setting.machine.process(7, "qemu-kvm", &[&setting.node(), &other, &setting.partition()]);
    setting.machine.process(8, "dd", &[&setting.partition()]);
    setting.machine.write("sys/devices/other/nvme9n1/holders/dm-3", "");
    let check = Check {
        roots: setting.machine.roots(),
        thoroughness: Thoroughness::Complete,
        blocks: setting.blocks.clone(),
    };
    let held = |numbers: &[Number]| check.survey(numbers).unwrap();
    let process = |text: &str| text.to_owned();
    let both = held(&[NUMBER, (259, 9)]);
    assert_eq!(both[&NUMBER], [process("process 7 (qemu-kvm)"), process("process 8 (dd)")]);
    assert_eq!(both[&(259, 9)], [process("dm-3"), process("process 7 (qemu-kvm)")]);
    assert_eq!(held(&[(259, 9)]).len(), 1, "nobody asked about the other");
    assert_eq!(*setting.blocks.flushes.lock().unwrap(), 0);

    fs::remove_file(setting.machine.path("proc/1/ns/pid")).unwrap();
    symlink("pid:[4026532999]", setting.machine.path("proc/1/ns/pid")).unwrap();
    let reason = check.survey(&[NUMBER]).unwrap_err().to_string();
    assert!(reason.contains("hostPID"), "what cannot be seen is no answer: {reason}");
}

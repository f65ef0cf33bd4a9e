//! Disconnecting, growing, and who is in the way.

use super::*;

#[tokio::test]
async fn all_paths_of_the_volume_are_deleted_and_nothing_else() {
    let setting = Setting::new();
    let machine = &setting.machine;
    add_controller(machine, "nvme0", &nqn(), HOST, "live");
    add_controller(machine, "nvme1", &nqn(), HOST, "connecting");
    add_controller(machine, "nvme2", &format!("{PREFIX}pvc-3"), OTHER_HOST, "live");
    add_controller(machine, "nvme3", &format!("{PREFIX}pvc-2"), HOST, "live");
    add_subsystem(machine, "nvme-subsys0", &nqn());
    add_head(machine, "nvme-subsys0", ("nvme0", "nvme0c0n1"), "nvme0n1", "259:0");
    assert_eq!(setting.found().await, Observed::Known(device(machine, "nvme0n1", 0)));
    setting.fabric.disconnect(&volume()).await.unwrap();
    let mut told = setting.told();
    told.sort();
    assert_eq!(told, ["nvme0/delete_controller", "nvme1/delete_controller"]);
    assert_eq!(setting.found().await, Observed::Absent);
    setting.fabric.disconnect(&volume()).await.unwrap();
    assert_eq!(setting.told().len(), 2);
}

#[tokio::test]
async fn a_held_device_stays_connected() {
    let setting = Setting::new();
    let connected = setting.fabric.connect(&connect()).await.unwrap();
    setting.machine.process(7, "qemu-kvm", &[&connected.path]);
    assert_eq!(setting.fabric.disconnect_unheld(&connected).await.unwrap(), ["process 7 (qemu-kvm)"]);
    assert_eq!((setting.told(), setting.found().await), (Vec::new(), Observed::Known(connected.clone())));
    setting.remove("proc/7/fd/0");
    assert_eq!(setting.fabric.disconnect_unheld(&connected).await.unwrap(), Vec::<String>::new());
    assert_eq!(setting.found().await, Observed::Absent);
    assert_eq!(*setting.blocks.flushes.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_look_that_is_not_complete_disconnects_nothing() {
    let setting = Setting::new();
    let connected = setting.fabric.connect(&connect()).await.unwrap();
    setting.remove("proc/1/ns/pid");
    let result = setting.fabric.disconnect_unheld(&connected).await;
    assert!(matches!(&result, Err(FabricError::HoldersUnseen { .. })), "{result:?}");
    assert_eq!((setting.told(), setting.found().await), (Vec::new(), Observed::Known(connected)));
}

#[tokio::test]
async fn a_device_that_has_become_another_is_not_disconnected() {
    let setting = Setting::new();
    let connected = setting.fabric.connect(&connect()).await.unwrap();
    setting.machine.block_device("sys/devices/other", "nvme9n1", "259:9", 8);
    let before =
        Device { id: DeviceId::Number { major: 259, minor: 9 }, ..device(&setting.machine, "nvme9n1", 9) };
    let result = setting.fabric.disconnect_unheld(&before).await;
    assert!(matches!(&result, Err(FabricError::HoldersUnseen { .. })), "{result:?}");
    assert_eq!((setting.told(), setting.found().await), (Vec::new(), Observed::Known(connected)));
}

#[tokio::test]
async fn a_deletion_that_hangs_is_not_an_end() {
    let limits = Limits { connect: PATIENCE, disconnect: SHORT, device: SHORT, grow: SHORT };
    let setting = Setting::with(limits);
    setting.fabric.connect(&connect()).await.unwrap();
    setting.kernel.deletions.lock().unwrap().push_back(Deletion::Hangs);
    for _ in 0..2 {
        let result = setting.fabric.disconnect(&volume()).await;
        let Err(FabricError::StillThere { reason, .. }) = result else { panic!("{result:?}") };
        assert!(reason.contains("nvme0 is deleting"), "{reason}");
        assert_eq!(setting.found().await, without_device("deleting (no IO)"));
    }
    assert_eq!(setting.told(), ["nvme0/delete_controller"], "what is going is not told twice");
    // It ends after all.
    remove_controller(&setting.machine, "nvme0");
    setting.fabric.disconnect(&volume()).await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_is_refused_is_tried_again() {
    let setting = Setting::new();
    setting.fabric.connect(&connect()).await.unwrap();
    // Not connected for the first time yet.
    setting.kernel.deletions.lock().unwrap().push_back(Deletion::Fails(Errno::BUSY));
    setting.fabric.disconnect(&volume()).await.unwrap();
    assert_eq!(setting.told().len(), 2);
}

#[tokio::test]
async fn a_number_that_was_given_anew_is_not_told() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    let seen = setting.fabric.machine.controllers_of(&nqn()).unwrap().remove(0);
    for (nqn, host) in [(format!("{PREFIX}pvc-2"), HOST), (nqn(), OTHER_HOST)] {
        remove_controller(&setting.machine, "nvme0");
        add_controller(&setting.machine, "nvme0", &nqn, host, "live");
        setting.fabric.machine.tell(&seen, "delete_controller").unwrap();
        assert_eq!(setting.told(), Vec::<String>::new(), "{nqn} as {host} was told");
    }
    remove_controller(&setting.machine, "nvme0");
    setting.fabric.machine.tell(&seen, "delete_controller").unwrap();
}

#[tokio::test]
async fn a_new_size_is_looked_for() {
    let setting = Setting::new();
    let before = setting.fabric.connect(&connect()).await.unwrap();
    let small = setting.fabric.rescan(&before, 2 << 20).await.unwrap();
    assert_eq!(small.size_bytes, 1 << 20, "the answer has whatever size it is");
    *setting.kernel.grown_sectors.lock().unwrap() = Some(4096);
    let grown = setting.fabric.rescan(&before, 2 << 20).await.unwrap();
    assert_eq!(grown.size_bytes, 2 << 20);
    assert_eq!(setting.told(), ["nvme0/rescan_controller"; 2]);
    setting.fabric.disconnect(&volume()).await.unwrap();
    let result = setting.fabric.rescan(&grown, 0).await;
    assert!(matches!(&result, Err(FabricError::Unreachable { .. })), "{result:?}");
}

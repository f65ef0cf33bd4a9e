//! What is there, on recorded trees.

use super::*;

#[tokio::test]
async fn without_nvme_everything_is_absent_but_without_sysfs_it_is_not() {
    let setting = Setting::new();
    assert_eq!(setting.found().await, Observed::Absent);
    fs::remove_dir_all(setting.machine.path("sys/class")).unwrap();
    setting.is_unknown(setting.fabric.find(&volume()).await, "sys/class");
    assert!(setting.fabric.connections().await.is_err());
}

#[tokio::test]
async fn a_device_is_found_by_nqn_with_and_without_multipath() {
    // Numbers that do not agree: the NVMe controller is 3, its device 7; somebody else's are the other way round.
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme3", &nqn(), HOST, "live");
    add_plain_device(&setting.machine, "nvme3", "nvme7n1", "259:5");
    add_controller(&setting.machine, "nvme7", &format!("{PREFIX}pvc-2"), HOST, "live");
    add_plain_device(&setting.machine, "nvme7", "nvme3n1", "259:6");
    assert_eq!(setting.found().await, Observed::Known(device(&setting.machine, "nvme7n1", 5)));

    let setting = Setting::new();
    for (controller, subsystem, nqn, name, path, number) in [
        ("nvme3", "nvme-subsys0", nqn(), "nvme0n1", "nvme0c3n1", "259:5"),
        ("nvme0", "nvme-subsys3", format!("{PREFIX}pvc-2"), "nvme3n1", "nvme3c0n1", "259:6"),
    ] {
        add_controller(&setting.machine, controller, &nqn, HOST, "live");
        add_subsystem(&setting.machine, subsystem, &nqn);
        add_head(&setting.machine, subsystem, (controller, path), name, number);
    }
    assert_eq!(setting.found().await, Observed::Known(device(&setting.machine, "nvme0n1", 5)));
    // Partitions are no devices of their own.
    setting.machine.block_device(
        "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        "nvme0n1p1",
        "259:8",
        9,
    );
    assert_eq!(setting.found().await, Observed::Known(device(&setting.machine, "nvme0n1", 5)));
}

#[tokio::test]
async fn states_decide_what_is_found() {
    let rows = [
        ("new", true),
        ("live", true),
        ("resetting", true),
        ("connecting", true),
        ("dead", true),
        ("deleting", false),
        ("deleting (no IO)", false),
    ];
    for (state, known) in rows {
        let setting = Setting::new();
        add_controller(&setting.machine, "nvme0", &nqn(), HOST, state);
        assert_eq!(setting.found().await, without_device(state), "{state}");
        add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
        let expected = match known {
            true => Observed::Known(device(&setting.machine, "nvme0n1", 0)),
            false => without_device(state),
        };
        assert_eq!(setting.found().await, expected, "{state}");
        let connections = setting.fabric.connections().await.unwrap();
        assert_eq!(connections.volumes[0].state, state);
        assert_eq!(connections.volumes[0].device.is_some(), known, "{state}");
    }
}

#[tokio::test]
async fn what_is_not_ours_is_not_found_but_named() {
    let setting = Setting::new();
    let machine = &setting.machine;
    // The host's own disks: over PCIe, and over TCP under another prefix.
    add_controller(machine, "nvme0", "nqn.1994-11.com.vendor:disk", HOST, "live");
    machine.write("sys/class/nvme/nvme0/transport", "pcie\n");
    fs::remove_file(machine.path("sys/class/nvme/nvme0/hostnqn")).unwrap();
    add_controller(machine, "nvme1", "nqn.2014-08.org.example:root-disk", HOST, "live");
    // A volume's, connected as another host.
    let of_another = format!("{PREFIX}pvc-3");
    add_controller(machine, "nvme2", &of_another, OTHER_HOST, "live");
    add_plain_device(machine, "nvme2", "nvme2n1", "259:2");
    // Under the prefix, and no volume id behind it.
    add_controller(machine, "nvme3", &format!("{PREFIX}-root"), HOST, "live");
    // Another volume of ours.
    add_controller(machine, "nvme4", &format!("{PREFIX}pvc-2"), HOST, "connecting");
    assert_eq!(setting.found().await, Observed::Absent);
    let connections = setting.fabric.connections().await.unwrap();
    let names: Vec<_> = connections.volumes.iter().map(|connection| connection.volume.as_str()).collect();
    assert_eq!(names, ["pvc-2"]);
    assert_eq!(connections.foreign, [format!("{PREFIX}-root"), format!("{of_another} as host {OTHER_HOST}")]);
    assert_eq!(setting.fabric.noticed.lock().unwrap().len(), 2);
    let unclear: Vec<_> = connections.unclear.keys().map(VolumeId::as_str).collect();
    assert_eq!(unclear, ["pvc-3"], "of which nothing can be found");
    assert_eq!(connections.nameless, Vec::<String>::new());

    // Disconnecting touches none of them.
    setting.fabric.disconnect(&volume()).await.unwrap();
    assert_eq!(setting.told(), Vec::<String>::new());
}

#[tokio::test]
async fn what_this_machine_has_connected_as_another_host_is_not_absent() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme2", &nqn(), OTHER_HOST, "live");
    setting.is_unknown(setting.fabric.find(&volume()).await, "set host_nqn to what it was");
}

#[tokio::test]
async fn what_was_connected_under_another_prefix_is_not_absent() {
    let setting = Setting::new();
    let other = format!("nqn.1999-01.com.example:{}", volume());
    add_controller(&setting.machine, "nvme2", &other, HOST, "live");
    setting.is_unknown(setting.fabric.find(&volume()).await, "set fabric.nqn_prefix to what it was");
    let other = "pvc-00000000-0000-4000-8000-000000000001";
    add_controller(&setting.machine, "nvme3", &format!("nqn.1999-01.com.example:{other}"), HOST, "live");
    let unclear = setting.fabric.connections().await.unwrap().unclear;
    assert!(unclear[&VolumeId::parse(other).unwrap()].contains("named like it"), "{unclear:?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_unknown() {
    for attribute in ["transport", "hostnqn", "subsysnqn", "state"] {
        let setting = Setting::new();
        add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
        add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
        let file = format!("sys/class/nvme/nvme0/{attribute}");
        setting.remove(&file);
        setting.is_unknown(setting.fabric.find(&volume()).await, "is missing");
        fs::create_dir(setting.machine.path(&file)).unwrap();
        setting.is_unknown(setting.fabric.find(&volume()).await, attribute);
    }
    for (attribute, value) in [("dev", "259"), ("size", "many"), ("size", "-1")] {
        let setting = Setting::new();
        add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
        add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
        setting.machine.write(&format!("sys/class/nvme/nvme0/nvme0n1/{attribute}"), value);
        setting.is_unknown(setting.fabric.find(&volume()).await, "reads");
    }
}

#[tokio::test]
async fn what_is_just_going_or_coming_is_no_error() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
    // A device without a number is not there yet, or not any more.
    setting.remove("sys/class/nvme/nvme0/nvme0n1/dev");
    assert_eq!(setting.found().await, without_device("live"));
    // An NVMe controller that was removed while the directory was listed.
    let directory = setting.machine.path("sys/devices/virtual/nvme-fabrics/ctl/nvme0");
    fs::remove_dir_all(directory).unwrap();
    assert_eq!(setting.found().await, Observed::Absent);
}

#[tokio::test]
async fn a_device_that_is_somewhere_else_is_not_overlooked() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme3", &nqn(), HOST, "live");
    add_subsystem(&setting.machine, "nvme-subsys0", "nqn.2014-08.org.example:another");
    add_head(&setting.machine, "nvme-subsys0", ("nvme3", "nvme0c3n1"), "nvme0n1", "259:5");
    setting.is_unknown(setting.fabric.find(&volume()).await, "nvme0n1 is not below its subsystem");
}

#[tokio::test]
async fn one_namespace_is_expected() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
    add_plain_device(&setting.machine, "nvme0", "nvme0n2", "259:1");
    setting.is_unknown(setting.fabric.find(&volume()).await, "several namespaces");
    let connections = setting.fabric.connections().await.unwrap();
    assert_eq!(connections.volumes[0].device, None);
    assert!(connections.volumes[0].state.contains("several namespaces"));
}

#[tokio::test]
async fn a_node_that_is_another_device_is_never_used() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
    setting.machine.node("nvme0n1", "block 259:9");
    setting.is_unknown(setting.fabric.find(&volume()).await, "is not the device 259:0");
    setting.remove("dev/nvme0n1");
    setting.is_unknown(setting.fabric.find(&volume()).await, "dev/nvme0n1");
}

#[tokio::test]
async fn a_connection_to_who_knows_what_may_be_this_volumes() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", "(efault)", OTHER_HOST, "connecting");
    assert_eq!(setting.found().await, Observed::Absent, "another host's is not ours");
    add_controller(&setting.machine, "nvme1", "(efault)", HOST, "connecting");
    setting.is_unknown(setting.fabric.find(&volume()).await, "nvme1");
    assert_eq!(setting.fabric.connections().await.unwrap().nameless, ["nvme1"]);
    // A connect of another volume explains it.
    let mark = setting.fabric.connecting.begin(VolumeId::parse("pvc-2").unwrap()).unwrap();
    assert_eq!(setting.found().await, Observed::Absent);
    let connections = setting.fabric.connections().await.unwrap();
    assert_eq!(connections.nameless, Vec::<String>::new());
    assert_eq!(connections.volumes[0].volume.as_str(), "pvc-2");
    drop(mark);
}

#[tokio::test]
async fn devices_exist_by_number() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
    let exists = async |major, minor| setting.fabric.exists(&DeviceId::Number { major, minor }).await;
    assert!(exists(259, 0).await.unwrap());
    assert!(!exists(259, 1).await.unwrap());
    assert!(exists(0, 39).await.unwrap(), "a tmpfs is not a device that is gone");
    fs::remove_dir_all(setting.machine.path("sys/dev")).unwrap();
    assert!(exists(259, 0).await.is_err());
}

//! Connecting, with all that can go wrong.

use super::*;

#[tokio::test]
async fn a_connect_makes_one_connection() {
    let setting = Setting::new();
    for _ in 0..2 {
        let found = setting.fabric.connect(&connect()).await.unwrap();
        assert_eq!(found, device(&setting.machine, "nvme0n1", 0));
    }
    assert_eq!(setting.connects(), 1);
    let options = setting.kernel.connects.lock().unwrap()[0].clone();
    let expected =
        format!("transport=tcp,traddr=10.0.0.1,trsvcid=4420,nqn={},hostnqn={HOST},hostid=0000", nqn());
    assert!(options.starts_with(&expected), "{options}");
    assert_eq!(setting.told(), Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_connection_with_a_device_is_success() {
    for state in ["connecting", "resetting"] {
        let setting = Setting::new();
        setting.fabric.connect(&connect()).await.unwrap();
        setting.set_state("nvme0", state);
        setting.fabric.connect(&connect()).await.unwrap();
        assert_eq!(setting.connects(), 1, "{state}");
    }
}

#[tokio::test]
async fn a_connection_without_a_device_is_made_anew() {
    // Found so, and made so.
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "live");
    setting.fabric.connect(&connect()).await.unwrap();
    assert_eq!((setting.connects(), setting.told()), (1, vec!["nvme0/delete_controller".to_owned()]));

    let setting = Setting::new();
    setting.script([Outcome::Namespaces(0)]);
    setting.fabric.connect(&connect()).await.unwrap();
    assert_eq!((setting.connects(), setting.told()), (2, vec!["nvme0/delete_controller".to_owned()]));

    // But not for ever, and nothing is left of it.
    let setting = Setting::new();
    setting.script([Outcome::Namespaces(0), Outcome::Namespaces(0)]);
    let error = setting.fabric.connect(&connect()).await.unwrap_err().to_string();
    assert!(error.contains("shows no device"), "{error}");
    assert_eq!((setting.connects(), setting.found().await), (2, Observed::Absent));
}

#[tokio::test]
async fn several_namespaces_are_no_device_and_stay_as_somebody_may_hold_one() {
    let setting = Setting::new();
    setting.script([Outcome::Namespaces(2)]);
    let error = setting.fabric.connect(&connect()).await.unwrap_err().to_string();
    assert!(error.contains("several namespaces"), "{error}");
    let found = setting.fabric.find(&volume()).await;
    setting.is_unknown(found, "several namespaces");
    assert_eq!(setting.connects(), 1);
}

#[tokio::test]
async fn a_refusal_leaves_nothing() {
    let rows = [
        (Errno::IO, "refused it, or broke it off"),
        (Errno::CONNREFUSED, "Connection refused"),
        (Errno::INVAL, "host id"),
        (Errno::ALREADY, "already"),
    ];
    for (errno, word) in rows {
        let setting = Setting::new();
        setting.script([Outcome::Fails(errno)]);
        let Err(FabricError::Unreachable { reason, .. }) = setting.fabric.connect(&connect()).await else {
            panic!("{errno}");
        };
        assert!(reason.contains(word), "{reason}");
        assert_eq!((setting.connects(), setting.found().await), (1, Observed::Absent));
    }
}

#[tokio::test]
async fn another_nqn_or_address_is_refused() {
    let setting = Setting::new();
    let other = Nqn::parse("nqn.2000-02.org.other:pvc-1").unwrap();
    let result = setting.fabric.connect(&Connect { nqn: other, ..connect() }).await;
    assert!(matches!(&result, Err(FabricError::Refused { .. })), "{result:?}");
    assert_eq!(setting.connects(), 0);

    setting.fabric.connect(&connect()).await.unwrap();
    let address = HostAddress::parse("10.0.0.2").unwrap();
    for asked in [Connect { address, ..connect() }, Connect { port: 4421, ..connect() }] {
        let result = setting.fabric.connect(&asked).await;
        let Err(FabricError::Refused { reason, .. }) = result else { panic!("{result:?}") };
        assert!(reason.contains("connected to 10.0.0.1:4420"), "{reason}");
    }
    assert_eq!((setting.connects(), setting.told()), (1, Vec::new()));
}

#[tokio::test]
async fn an_end_of_the_old_connection_is_waited_for() {
    let setting = Setting::new();
    add_controller(&setting.machine, "nvme0", &nqn(), HOST, "deleting");
    add_plain_device(&setting.machine, "nvme0", "nvme0n1", "259:0");
    setting.remove("sys/class/nvme/nvme0/delete_controller");
    let (machine, wanted) = (setting.machine.clone(), connect());
    let (result, ()) = tokio::join!(setting.fabric.connect(&wanted), async {
        sleep(SHORT).await;
        assert_eq!(setting.connects(), 0, "connected beside what is being deleted");
        remove_controller(&machine, "nvme0");
    });
    assert_eq!(result.unwrap(), device(&setting.machine, "nvme0n1", 0));
}

#[tokio::test]
async fn a_dead_connection_is_made_anew_unless_it_is_held() {
    let setting = Setting::new();
    setting.fabric.connect(&connect()).await.unwrap();
    setting.set_state("nvme0", "dead");
    let node = setting.machine.path("dev/nvme0n1");
    setting.blocks.unclaimable.lock().unwrap().insert(node.clone(), Errno::NXIO);
    setting.machine.process(7, "qemu-kvm", &[&node]);
    let result = setting.fabric.connect(&connect()).await;
    assert!(
        matches!(&result, Err(FabricError::Refused { reason, .. }) if reason.contains("qemu-kvm")),
        "{result:?}"
    );
    setting.remove("proc/7/fd/0");
    setting.fabric.connect(&connect()).await.unwrap();
    assert_eq!(setting.connects(), 2);
}

#[tokio::test]
async fn a_connect_that_outlives_its_limit_is_undone_when_it_comes_up() {
    let limits = Limits { connect: SHORT, disconnect: SHORT, device: SHORT, grow: SHORT };
    let setting = Setting::with(limits);
    let (outcome, has_begun, go) = gate();
    setting.script([outcome]);
    let error = setting.fabric.connect(&connect()).await.unwrap_err().to_string();
    assert!(error.contains("has not answered within 60 ms"), "{error}");
    has_begun.recv().unwrap();

    // As long as it may come up, the volume is not absent, cannot be connected a second time, nor be disconnected.
    assert_eq!(setting.found().await, without_device("connecting"));
    let connections = setting.fabric.connections().await.unwrap();
    assert_eq!(
        (connections.volumes[0].volume.clone(), connections.volumes[0].device.clone()),
        (volume(), None)
    );
    let again = setting.fabric.connect(&connect()).await.unwrap_err().to_string();
    assert!(again.contains("an earlier connect has not come back"), "{again}");
    let result = setting.fabric.disconnect(&volume()).await;
    assert!(matches!(result, Err(FabricError::StillThere { .. })), "{result:?}");
    assert_eq!(setting.connects(), 1);

    // The kernel shows it without a subsystem at first; that is no other volume's business.
    add_controller(&setting.machine, "nvme5", "(efault)", HOST, "connecting");
    let other = VolumeId::parse("pvc-2").unwrap();
    assert_eq!(setting.fabric.find(&other).await.unwrap(), Observed::Absent);
    remove_controller(&setting.machine, "nvme5");

    go.send(()).unwrap();
    wait_for("its end", async || setting.found().await == Observed::Absent).await;
    assert_eq!(setting.told(), ["nvme0/delete_controller"]);
    setting.fabric.connect(&connect()).await.unwrap();
}

#[tokio::test]
async fn what_comes_up_late_and_cannot_be_undone_is_seen() {
    let limits = Limits { connect: SHORT, disconnect: PATIENCE, device: SHORT, grow: SHORT };
    let setting = Setting::with(limits);
    let (outcome, _has_begun, go) = gate();
    setting.script([outcome]);
    setting.kernel.deletions.lock().unwrap().push_back(Deletion::Fails(Errno::PERM));
    setting.fabric.connect(&connect()).await.unwrap_err();
    go.send(()).unwrap();
    wait_for("the device", async || matches!(setting.found().await, Observed::Known(_))).await;
    setting.fabric.disconnect(&volume()).await.unwrap();
    assert_eq!(setting.found().await, Observed::Absent);
}

#[tokio::test]
async fn a_host_name_is_resolved_or_the_connect_fails() {
    let setting = Setting::new();
    // Longer than a label of a name may be, so nobody is asked for it.
    let name = "a".repeat(64);
    let address = HostAddress::parse(&name).unwrap();
    let error = setting.fabric.connect(&Connect { address, ..connect() }).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot resolve {name}")), "{error}");
    assert_eq!(setting.connects(), 0);
}

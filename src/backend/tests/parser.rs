//! The parsers against random and damaged output: they never panic, and garbage is never "nothing is there".

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use backend::Disk;
use backend::fuzzing::parse_output;
use proptest::prelude::*;
use routeros_simulator::{PrintStyle, SimulatedDisk, Wrap, print_disks};
use state_machine::{Nqn, VolumeId};

/// Answers with one record, as the appliance gives them.
fn captures() -> Vec<(bool, Vec<u8>)> {
    let human = "Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT\r\n31 Bt type=file slot=\"pvc-1\" fs=- \
                 size=1 099 511 627 776 mount-filesystem=no nvme-tcp-export=yes\r\n      \
                 nvme-tcp-server-port=4420 nvme-tcp-server-nqn=\"nqn.2000-02.com.mikrotik:pvc-1\"\r\n      \
                 file-path=/storage-pool/csi/pvc-1.img file-size=1024.0GiB\r\nrds-csi-count=1\r\n";
    let json = "[{\".id\":\"*1F\",\"type\":\"file\",\"slot\":\"pvc-1\",\"size\":1099511627776,\
                \"mount-filesystem\":false,\"nvme-tcp-export\":true,\"nvme-tcp-server-port\":4420.000000,\
                \"nvme-tcp-server-nqn\":\"nqn.2000-02.com.mikrotik:pvc-1\",\
                \"file-path\":\"/storage-pool/csi/pvc-1.img\"}]\r\n";
    vec![(false, human.into()), (true, json.into())]
}

/// Whether `output` says, in so many words, that there is nothing.
fn says_nothing(is_json: bool, output: &[u8]) -> bool {
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    if is_json {
        text.split_whitespace().collect::<String>() == "[]"
    } else {
        text.ends_with("rds-csi-count=0")
    }
}

#[test]
fn the_captures_are_good() {
    for (is_json, capture) in captures() {
        let (records, disks) = parse_output(is_json, &capture).unwrap();
        assert_eq!((records, disks.len()), (1, 1));
        assert_eq!(disks[0].size_bytes, 1 << 40);
    }
}

fn any_style() -> impl Strategy<Value = PrintStyle> {
    (24..300_usize, any::<bool>(), 5..16_usize, any::<bool>(), any::<bool>()).prop_map(
        |(width, cuts, indent, shows_flags, blank_lines)| PrintStyle {
            width,
            wrap: if cuts { Wrap::Anywhere } else { Wrap::BetweenProperties },
            indent,
            shows_flags,
            blank_lines,
        },
    )
}

/// A disk of ours as the simulator has it.
fn any_disk() -> impl Strategy<Value = SimulatedDisk> {
    let names = ("[a-z0-9][a-z0-9_-]{0,40}", "/[a-z]{1,10}(/[a-z0-9][a-z0-9_-]{0,20}){0,4}");
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (names, 1..1_u64 << 50, flags, any::<u16>()).prop_map(
        |((name, directory), size_bytes, flags, nvme_port)| {
            let slot = format!("pvc-{name}");
            SimulatedDisk {
                file_path: format!("{directory}/{slot}.img"),
                nqn: format!("nqn.2000-02.com.mikrotik:{slot}"),
                slot,
                size_bytes,
                mount_filesystem: flags.0,
                compress: flags.1,
                exported: flags.2,
                nvme_port,
            }
        },
    )
}

fn read_back(disk: &SimulatedDisk) -> Disk {
    Disk {
        volume: VolumeId::parse(&disk.slot).unwrap(),
        file_path: disk.file_path.clone(),
        size_bytes: disk.size_bytes,
        exported: disk.exported,
        nqn: Some(Nqn::parse(&disk.nqn).unwrap()),
        nvme_port: Some(disk.nvme_port),
        mounted_by_appliance: disk.mount_filesystem,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_reads_back_exactly(
        style in any_style(),
        mut disks in proptest::collection::vec(any_disk(), 0..12),
        odd_slot in "[a-z \"=\\\\;0-9-]{0,40}",
    ) {
        let mut expected: Vec<_> = disks.iter().map(read_back).collect();
        expected.sort_by(|a, b| a.volume.cmp(&b.volume));
        if let Some(first) = disks.first().cloned() {
            // A foreign disk with a slot that tries to look like something else.
            disks.insert(1, SimulatedDisk { slot: format!("odd {odd_slot}"), ..first });
        }
        let printed = format!("{}rds-csi-count={}\r\n", print_disks(&disks, &style), disks.len());
        let (records, found) = parse_output(false, printed.as_bytes()).unwrap();
        prop_assert_eq!(records, disks.len());
        prop_assert_eq!(found, expected, "{}", printed);
    }

    #[test]
    fn garbage_is_never_nothing(is_json: bool, output in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok((0, _)) = parse_output(is_json, &output) {
            prop_assert!(says_nothing(is_json, &output));
        }
    }

    #[test]
    fn likely_garbage_is_never_nothing(
        is_json: bool,
        output in r#"(Flags: |[ 0-9]{1,6}|\r\n| {6,15}|[a-z-]{1,12}=|"|\\|size=|slot=|[{}\[\],:]|;;;|rds-csi-count=[0-2]){0,30}"#,
    ) {
        if let Ok((0, _)) = parse_output(is_json, output.as_bytes()) {
            prop_assert!(says_nothing(is_json, output.as_bytes()), "{output:?}");
        }
    }

    #[test]
    fn a_damaged_answer_is_never_nothing(
        which in 0..2_usize,
        damages in proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6),
    ) {
        let (is_json, mut output) = captures().swap_remove(which);
        for (place, kind, byte) in damages {
            if output.is_empty() {
                break;
            }
            let at = place.index(output.len());
            match kind {
                0 => output[at] = byte,
                1 => output.insert(at, byte),
                2 => drop(output.remove(at)),
                _ => output.truncate(at.max(1)),
            }
        }
        let parsed = parse_output(is_json, &output);
        prop_assert!(!matches!(parsed, Ok((0, _))), "{:?}", String::from_utf8_lossy(&output));
    }
}

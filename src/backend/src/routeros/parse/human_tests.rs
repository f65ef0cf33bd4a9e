//! Captures of real appliances, and texts that must not pass.

use state_machine::VolumeId;

use super::super::disk::{SlotContent, capacity, disk_in_slot, our_disks};
use super::*;

const NARROW: &str = r#"Flags: X - disabled, E - empty; ...
 0  type=file slot="pvc-test-123" slot-default="" parent="" fs=-
               model="/storage-pool/test.img"
               size=53 687 091 200 mount-filesystem=yes mount-read-only=no
               compress=no sector-size=512 raid-master=none
               nvme-tcp-export=yes nvme-tcp-server-port=4420
               nvme-tcp-server-nqn="nqn.2000-02.com.mikrotik:pvc-test-123"
               nvme-tcp-server-allow-host-name="" iscsi-export=no
               nfs-sharing=no smb-sharing=no media-sharing=no
               media-interface=none swap=no
               file-path=/storage-pool/test.img
               file-size=50.0GiB file-offset=0
"#;

const WIDE: &str = r#"Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT
31 Bt type=file slot="vm-storage-001" slot-default="" parent="" fs=- model="/raid10/vm-storage-001.img" size=1 099 511 627 776 mount-filesystem=no mount-read-only=no compress=no sector-size=512 raid-master=none nvme-tcp-export=yes
      nvme-tcp-server-port=4420 nvme-tcp-server-nqn="nqn.2026-09.com.mikrotik:rds2216.vm-storage-001" nvme-tcp-server-allow-host-name="" iscsi-export=no nfs-sharing=no smb-sharing=no media-sharing=no media-interface=none swap=no
      file-path=/raid10/vm-storage-001.img file-size=1024.0GiB file-offset=0
"#;

const POOL: &str = r#"Flags: B - BLOCK-DEVICE; M - MOUNTED
26 BM  type=raid slot="raid10" fs=xfs model="RAID0 striped" size=16 003 143 565 312 free=14 789 895 307 264 total-inodes=1 562 806 656 free-inodes=1 562 806 652 use=8% mount-point="raid10" state="clean"
"#;

const FILES: &str = "\r
 0   name=storage-pool/metal-csi type=directory\r
     last-modified=2025-11-11 16:47:07\r
\r
 1   name=storage-pool/metal-csi/pvc-ccde.img\r
     type=.img file size=10.0GiB last-modified=2025-11-11 14:32:41\r
";

/// An answer as it comes: CRLF, and the count behind it.
fn answer(capture: &str, count: usize) -> String {
    format!("{}{COUNT}{count}\r\n", capture.replace("\r\n", "\n").replace('\n', "\r\n"))
}

fn disk_of(capture: &str, slot: &str) -> crate::Disk {
    let found = records(&answer(capture, 1)).unwrap();
    match disk_in_slot(&found, &VolumeId::parse(slot).unwrap()).unwrap() {
        SlotContent::Disk(disk) => disk,
        other @ (SlotContent::Nothing | SlotContent::OtherType(_)) => panic!("{other:?}"),
    }
}

#[test]
fn the_narrow_capture() {
    let disk = disk_of(NARROW, "pvc-test-123");
    assert_eq!(disk.size_bytes, 53_687_091_200);
    assert_eq!(disk.file_path, "/storage-pool/test.img");
    assert_eq!(disk.nqn.unwrap().as_str(), "nqn.2000-02.com.mikrotik:pvc-test-123");
    assert_eq!(disk.nvme_port, Some(4420));
    assert!(disk.exported && disk.mounted_by_appliance);
}

#[test]
fn the_wide_capture() {
    let disk = disk_of(WIDE, "vm-storage-001");
    assert_eq!(disk.size_bytes, 1 << 40);
    assert_eq!(disk.file_path, "/raid10/vm-storage-001.img");
    assert!(disk.exported && !disk.mounted_by_appliance);
}

#[test]
fn a_path_cut_inside_a_token() {
    let cut =
        WIDE.replace("file-path=/raid10/vm-storage-001.img", "file-path=/raid10/vm-sto\n      rage-001.img");
    assert_eq!(disk_of(&cut, "vm-storage-001").file_path, "/raid10/vm-storage-001.img");
    let before_dash = WIDE.replace("file-path=/raid10/vm-storage", "file-path=/raid10/vm\n      -storage");
    assert_eq!(disk_of(&before_dash, "vm-storage-001").file_path, "/raid10/vm-storage-001.img");
}

#[test]
fn a_record_cut_at_every_place_reads_the_same() {
    let whole = disk_of(WIDE, "vm-storage-001");
    let one_line = WIDE.split_once('\n').unwrap().1.replace("\n      ", " ");
    let one_line = one_line.trim_end();
    for at in "31 Bt type".len()..one_line.len() {
        let (head, tail) = one_line.split_at(at);
        // The space where a line ends may be dropped, or stay on either side.
        for (head, tail) in [(head, tail), (head.trim_end(), tail.trim_start())] {
            let cut = format!("Flags: B - BLOCK-DEVICE\n{head}\n               {tail}\n");
            assert_eq!(disk_of(&cut, "vm-storage-001"), whole, "cut at {at}: {head:?}");
        }
    }
}

#[test]
fn a_pool() {
    let found = records(&answer(POOL, 1)).unwrap();
    let capacity = capacity(&found).unwrap().unwrap();
    assert_eq!(capacity.total_bytes, 16_003_143_565_312);
    assert_eq!(capacity.free_bytes, 14_789_895_307_264);
}

#[test]
fn files_with_and_without_blank_lines() {
    for capture in [FILES.to_owned(), FILES.replace("\r\n\r\n", "\r\n")] {
        let found = records(&answer(&capture, 2)).unwrap();
        assert_eq!(found[1].text("name"), Some("storage-pool/metal-csi/pvc-ccde.img"));
    }
}

#[test]
fn a_comment_and_an_unknown_property_do_not_disturb() {
    let commented = WIDE
        .replace("31 Bt type=file", "31 Bt ;;; size=7 of my making\n      type=file")
        .replace("swap=no", "swap=no brand-new=1 newer-\n      still=\"x y\"");
    assert_eq!(disk_of(&commented, "vm-storage-001"), disk_of(WIDE, "vm-storage-001"));
}

#[test]
fn foreign_disks_are_passed_over() {
    let second = NARROW.split_once('\n').unwrap().1.replace(" 0  ", "32  ");
    let found = records(&answer(&format!("{WIDE}{second}"), 2)).unwrap();
    let ours = our_disks(&found).unwrap();
    assert_eq!(ours.iter().map(|disk| disk.volume.as_str()).collect::<Vec<_>>(), ["pvc-test-123"]);
}

#[test]
fn nothing_is_nothing_only_when_it_says_so() {
    let header = "Flags: X - disabled, E - empty; B - block-device; M - mounted,\n       F - formatting\n";
    assert_eq!(records(&answer(header, 0)).unwrap(), Vec::new());
    assert_eq!(records(&answer("", 0)).unwrap(), Vec::new());
    for text in [
        "",
        "\r\n",
        header,
        &answer(header, 1),
        &answer(WIDE, 0),
        &answer(NARROW, 2),
        "failure: no such item\r\n",
        "bad command name dsk (line 1 column 2)\r\n",
        "Flags: a=b\r\nrds-csi-count=0\r\n",
        "garbage\r\nrds-csi-count=0\r\n",
        "rds-csi-count=\r\n",
        "rds-csi-count=-0\r\n",
        "rds-csi-count=0 1\r\n",
    ] {
        assert!(records(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_broken_record_is_an_error() {
    for (from, to) in [
        ("slot=\"vm-storage-001\"", "slot=\"vm-storage-001"),
        ("slot=\"vm-storage-001\"", "slot=\"vm-storage-001\" slot=\"other\""),
        ("31 Bt", "31 B=t"),
        ("      file-path", "file-path"),
        ("size=1 099 511 627 776", "size=\"1 099\"x"),
    ] {
        let broken = WIDE.replace(from, to);
        assert_ne!(broken, WIDE);
        assert!(records(&answer(&broken, 1)).is_err(), "{to}");
    }
    for (from, to) in [
        ("size=1 099 511 627 776", "size=1 099 511 627 77G"),
        ("size=1 099 511 627 776 ", ""),
        ("nvme-tcp-export=yes", "nvme-tcp-export=perhaps"),
        ("file-path=/raid10/vm-storage-001.img", "file-path=/raid10/vm-storage-001.img extra"),
        ("type=file", "kind=file"),
    ] {
        let found = records(&answer(&WIDE.replace(from, to), 1)).unwrap();
        assert!(disk_in_slot(&found, &VolumeId::parse("vm-storage-001").unwrap()).is_err(), "{to}");
    }
}

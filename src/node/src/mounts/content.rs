//! What is on a block device, and the proof that there is nothing.
//!
//! Three looks, and each has to agree before a device counts as empty: nobody else holds it (a formatting tool that
//! outlived its caller has it open exclusively, and what it has written so far means nothing), `blkid` knows nothing
//! on it and complains of nothing, and there are zeros wherever a file system would have written. Whatever could not be
//! read makes the answer an error.
//!
//! That nobody holds it is proven by opening it exclusively, for an instant only, before the other looks and once more
//! after them. A claim that were kept would pass to every tool that is started meanwhile for another volume, until
//! that tool's own program begins, and would then be in the way of the one that formats or checks this device.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::blank::find_data;
use super::bounded::{Pending, within};
use super::signatures::{self, Signature};
use super::{Content, MountError};
use crate::fabric::Device;
use crate::tool;

/// How long each look may take, in ms.
const PROBE_LIMIT_MS: u64 = 60_000;
/// How long somebody must hold the device to be in the way, in ms: udev and others open new ones for a moment.
const PASSING_HOLDER_MS: u64 = 2_000;
/// How often it is tried meanwhile, in ms.
const CLAIM_POLL_MS: u64 = 50;

/// What is on the device.
pub(super) async fn content(device: &Device, pending: &Pending) -> Result<Content, MountError> {
    wait_until_free(&device.path).await?;
    let content = look(device, pending).await?;
    wait_until_free(&device.path).await?;
    Ok(content)
}

async fn look(device: &Device, pending: &Pending) -> Result<Content, MountError> {
    let arguments = ["--probe", "--output", "export"].map(OsStr::new);
    let arguments = [arguments.as_slice(), &[device.path.as_os_str()]].concat();
    let probe = tool::run("blkid", &arguments, Duration::from_millis(PROBE_LIMIT_MS)).await?;
    if let Signature::Found(content) = signatures::parse(probe.code, &probe.stdout, &probe.stderr) {
        return Ok(content);
    }
    if device.size_bytes == 0 {
        return Ok(Content::Unclear("a device without size".to_owned()));
    }
    let (path, size_bytes) = (device.path.clone(), device.size_bytes);
    let data_at = pending
        .within(PROBE_LIMIT_MS, "read", &device.path, move || find_data(&File::open(path)?, size_bytes));
    Ok(match data_at.await? {
        None => Content::Empty,
        Some(offset) => Content::Unclear(format!("no known signature, but data at byte {offset}")),
    })
}

/// Whether anybody holds the device exclusively, as every mount of it does.
pub(super) async fn is_claimed(path: &Path) -> Result<bool, MountError> {
    let device = path.to_path_buf();
    let open = move || {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(&device, flags, Mode::empty()) {
            Ok(_) => Ok(false),
            Err(Errno::BUSY) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    };
    within(PROBE_LIMIT_MS, "open", path, open).await
}

/// Waits until nobody holds the device exclusively, for as long as somebody may who is only passing.
async fn wait_until_free(path: &Path) -> Result<(), MountError> {
    let until = Instant::now() + Duration::from_millis(PASSING_HOLDER_MS);
    while is_claimed(path).await? {
        if Instant::now() >= until {
            return Err(MountError::Held { path: path.to_path_buf() });
        }
        sleep(Duration::from_millis(CLAIM_POLL_MS)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::DeviceId;
    use state_machine::{FsType, VolumeId};
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::process::Command;
    use tempfile::TempDir;

    /// Size of the images, in bytes: mkfs.xfs takes no less than 300 MiB. They are sparse.
    const IMAGE_BYTES: u64 = 512 << 20;

    /// Bytes at an offset; a negative offset counts from the end.
    type Mark = (i64, &'static [u8]);

    struct Image {
        file: File,
        path: PathBuf,
        _directory: TempDir,
    }

    /// An image with these marks.
    fn image(marks: &[Mark]) -> Image {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let file = File::create_new(&path).unwrap();
        file.set_len(IMAGE_BYTES).unwrap();
        for (offset, bytes) in marks {
            let offset =
                if *offset < 0 { IMAGE_BYTES - offset.unsigned_abs() } else { offset.unsigned_abs() };
            file.write_all_at(bytes, offset).unwrap();
        }
        Image { file, path, _directory: directory }
    }

    /// An image that this tool has written to.
    fn made_by(tool: &str, arguments: &[&str]) -> Image {
        let image = image(&[]);
        let output = Command::new(tool).args(arguments).arg(&image.path).output().unwrap();
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
        image
    }

    async fn content_of(image: &Image) -> Content {
        let device = Device {
            volume: VolumeId::parse("pvc-1").unwrap(),
            id: DeviceId::Number { major: 7, minor: 0 },
            path: image.path.clone(),
            size_bytes: IMAGE_BYTES,
        };
        content(&device, &Pending::default()).await.unwrap()
    }

    #[track_caller]
    fn unclear(content: Content, words: &str) {
        match content {
            Content::Unclear(what) => assert!(what.contains(words), "{words:?} is not in {what:?}"),
            other @ (Content::Empty | Content::FileSystem(_)) => panic!("{words}: read as {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_the_tools_make_is_known() {
        assert_eq!(content_of(&image(&[])).await, Content::Empty);
        for (tool, fs_type) in [("mkfs.ext4", FsType::Ext4), ("mkfs.xfs", FsType::Xfs)] {
            let image = made_by(tool, &["-q"]);
            assert_eq!(content_of(&image).await, Content::FileSystem(fs_type));
        }
        unclear(content_of(&made_by("mkfs.ext4", &["-q", "-t", "ext2"])).await, "ext2");
        unclear(content_of(&made_by("mkfs.ext4", &["-q", "-O", "journal_dev"])).await, "jbd");
        unclear(content_of(&made_by("mkswap", &[])).await, "swap");
    }

    /// Signatures of what else may be on a disk, as their formats have them. Whether or not `blkid` takes so little for
    /// the whole, none of them is nothing.
    #[tokio::test]
    async fn no_signature_of_anything_is_emptiness() {
        const DOS_PARTITION: &[u8] = &[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
        const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
        let rows: &[(&str, &[Mark])] = &[
            ("partition table (dos)", &[(446, DOS_PARTITION), (510, b"\x55\xaa")]),
            ("partition table (gpt)", &[(512, b"EFI PART\0\0\x01\0")]),
            ("partition table (gpt), only its copy", &[(-512, b"EFI PART\0\0\x01\0")]),
            ("LUKS", &[(0, b"LUKS\xba\xbe\0\x02")]),
            ("LUKS, only its second header", &[(0x4000, b"SKUL\xba\xbe\0\x02")]),
            ("LVM", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
            ("md 1.2", &[(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0")]),
            ("md 1.0", &[(-8192, b"\xfc\x4e\x2b\xa9\x01\0\0\0")]),
            ("md 0.90", &[(-65536, b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0")]),
            ("zfs", &[(128 << 10, b"\x0c\xb1\xba\0\0\0\0\0")]),
            ("zfs, only its last label", &[(-(128 << 10), b"\x0c\xb1\xba\0\0\0\0\0")]),
            ("btrfs", &[(65536 + 64, b"_BHRfS_M")]),
            ("btrfs, only its copy", &[((64 << 20) + 64, b"_BHRfS_M")]),
            ("drbd", &[(-4096 + 60, b"\x83\x74\x02\x6d")]),
            ("bcache", &[(4096 + 24, BCACHE)]),
            ("vfat", &[(54, b"FAT16   "), (510, b"\x55\xaa")]),
            ("ntfs", &[(3, b"NTFS    ")]),
            ("vmfs", &[(1 << 20, b"\x0d\xd0\x01\xc0")]),
            ("a single byte", &[((16 << 20) - 1, b"x")]),
        ];
        for (name, marks) in rows {
            let content = content_of(&image(marks)).await;
            assert!(matches!(content, Content::Unclear(_)), "{name} read as {content:?}");
        }
    }

    #[tokio::test]
    async fn a_file_system_without_its_superblocks_is_not_emptiness() {
        for (tool, superblock_bytes) in [("mkfs.ext4", 2048), ("mkfs.xfs", 512)] {
            let image = made_by(tool, &["-q"]);
            image.file.write_all_at(&vec![0; superblock_bytes], 0).unwrap();
            unclear(content_of(&image).await, "data at byte");
            // Nor without all that the head of the device had.
            image.file.write_all_at(&vec![0; 16 << 20], 0).unwrap();
            unclear(content_of(&image).await, "data at byte");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error() {
        let (image, pending) = (image(&[]), Pending::default());
        let device = |path: &Path, size_bytes| Device {
            volume: VolumeId::parse("pvc-1").unwrap(),
            id: DeviceId::Number { major: 7, minor: 0 },
            path: path.to_path_buf(),
            size_bytes,
        };
        assert!(content(&device(Path::new("/no/such/device"), 1 << 20), &pending).await.is_err());
        assert!(
            content(&device(&image.path, IMAGE_BYTES + 4096), &pending).await.is_err(),
            "it is shorter than it says"
        );
        unclear(content(&device(&image.path, 0), &pending).await.unwrap(), "without size");
    }
}

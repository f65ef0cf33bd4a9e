//! The second half of the proof that a device is empty: zeros where a file system would have written.
//!
//! `blkid` knows signatures only. A file system whose signature is damaged has none, and still all its files. The
//! device cannot be read whole in a bearable time, so the places are read where ext4, XFS, partition tables, LVM,
//! md and LUKS put what they need: the beginning, the end, the copies of ext4's and btrfs's superblocks and the heads
//! of XFS's allocation groups; and an even sample of the rest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of the beginning is read, in bytes: superblock, group descriptors, bitmaps and first inode tables.
const HEAD_BYTES: u64 = 16 << 20;
/// How much of the end is read, in bytes: the second partition table, old md superblocks.
const TAIL_BYTES: u64 = 1 << 20;
/// How much is read at each sample, in bytes.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Into how many parts the device is cut to sample each one's beginning; XFS cuts it into 4 or a multiple.
const EVEN_SAMPLES: u64 = 64;
/// Block groups that have a copy of ext4's superblock (`sparse_super`: 1 and powers of 3, 5 and 7).
const EXT4_COPIES: [u64; 9] = [1, 3, 5, 7, 9, 25, 27, 49, 81];
/// Sizes of ext4's block groups with blocks of 1, 2 and 4 KiB, in bytes: 8 blocks' worth of bits each.
const EXT4_GROUP_BYTES: [u64; 3] = [8 << 20, 32 << 20, 128 << 20];
/// Where btrfs keeps copies of its superblock, in bytes, besides the one in the beginning.
const BTRFS_COPIES: [u64; 2] = [64 << 20, 256 << 30];
/// How much is read at once, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// The offset of data on the device of `size_bytes`, if any was found.
pub(super) fn find_data(device: &File, size_bytes: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for (from, length) in regions(size_bytes) {
        let end = from.saturating_add(length).min(size_bytes);
        let mut at = from.min(end);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let part = &mut chunk[..wanted];
            device.read_exact_at(part, at)?;
            if let Some(position) = part.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + position as u64));
            }
            at += wanted as u64;
        }
    }
    Ok(None)
}

/// Where to look, as offset and length.
fn regions(size_bytes: u64) -> Vec<(u64, u64)> {
    let mut regions = vec![(0, HEAD_BYTES), (size_bytes.saturating_sub(TAIL_BYTES), TAIL_BYTES)];
    let part = size_bytes / EVEN_SAMPLES;
    // An allocation group's head lies within a few blocks of its even share: begin a little before.
    regions.extend((1..EVEN_SAMPLES).map(|i| ((part * i).saturating_sub(SAMPLE_BYTES / 2), SAMPLE_BYTES)));
    regions.extend(BTRFS_COPIES.map(|copy| (copy, SAMPLE_BYTES)));
    for group in EXT4_GROUP_BYTES {
        regions.extend(EXT4_COPIES.iter().map(|copy| (copy * group, SAMPLE_BYTES)));
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sparse file of `size_bytes` with one byte of data at each offset.
    fn device(size_bytes: u64, data_at: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        for offset in data_at {
            file.write_all_at(b"x", *offset).unwrap();
        }
        file
    }

    #[test]
    fn zeros_are_empty_whatever_the_size() {
        for size_bytes in [0, 512, 4096, 1 << 20, (1 << 30) + 4096] {
            assert_eq!(find_data(&device(size_bytes, &[]), size_bytes).unwrap(), None, "{size_bytes}");
        }
    }

    #[test]
    fn data_where_file_systems_keep_theirs_is_found() {
        const SIZE_BYTES: u64 = 4 << 30;
        let offsets = [
            0,
            1024,
            4096,
            HEAD_BYTES - 1,
            128 << 20,
            3 * (128 << 20),
            SIZE_BYTES / 4,
            SIZE_BYTES - 512,
            SIZE_BYTES - 1,
        ];
        for offset in offsets {
            assert_eq!(find_data(&device(SIZE_BYTES, &[offset]), SIZE_BYTES).unwrap(), Some(offset));
        }
    }

    #[test]
    fn a_copy_of_a_superblock_of_btrfs_is_found() {
        // Of a size whose even samples lie elsewhere.
        const SIZE_BYTES: u64 = 5 << 30;
        let magic_at = (64 << 20) + 64;
        assert_eq!(find_data(&device(SIZE_BYTES, &[magic_at]), SIZE_BYTES).unwrap(), Some(magic_at));
    }

    #[test]
    fn a_device_shorter_than_it_says_is_an_error() {
        assert!(find_data(&device(4096, &[]), 8192).is_err());
    }
}

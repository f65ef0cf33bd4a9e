//! Archives that the kernel unpacks as a guest's first file system: cpio, the format called "newc".

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// What ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Everything in an archive begins at a multiple of this, in bytes.
const ALIGNMENT_BYTES: usize = 4;

/// An archive in the making. Paths have no leading `/`.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a file that may be executed, and the directories above it.
    pub(super) fn add(&mut self, path: &str, content: &[u8]) {
        for (index, _) in path.match_indices('/') {
            let directory = &path[..index];
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY, &[]);
            }
        }
        self.entry(path, PROGRAM, content);
    }

    /// The archive's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let name_bytes = path.len() + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's size, checksum
        let fields =
            [self.inodes as usize, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name_bytes, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.add("usr/bin/a", b"12345");
        archive.add("usr/bin/b", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGNMENT_BYTES, 0);
        let text = String::from_utf8_lossy(&bytes);
        let position = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(position("usr") < position("usr/bin") && position("usr/bin") < position("usr/bin/a"));
        assert_eq!(text.matches("070701").count(), 5);
        // The size of "a", and its name's size with the zero that ends it.
        assert!(text.contains("00000005"), "{text}");
    }
}

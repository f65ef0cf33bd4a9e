//! The tools that the node plugin runs, looked for when it starts: an image that lacks one is found at once, and not by
//! the first pod whose volume needs it.
//!
//! Only where volumes come over the real fabric; the others are for machines where people try things out.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::tool::TOOL_PATH;

/// Each tool, and the package that brings it in Debian.
const NEEDED: &[(&str, &str)] = &[
    ("mount", "mount"),
    ("umount", "mount"),
    ("blkid", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_growfs", "xfsprogs"),
];

/// All that are not there, each with what to install.
pub(crate) fn missing_tools() -> Vec<String> {
    missing_in(TOOL_PATH)
}

fn missing_in(path: &str) -> Vec<String> {
    let is_there = |tool: &str| path.split(':').any(|directory| is_program(&Path::new(directory).join(tool)));
    let missing = NEEDED.iter().filter(|(tool, _)| !is_there(tool));
    missing.map(|(tool, package)| format!("{tool} (Debian's package {package})")).collect()
}

fn is_program(file: &Path) -> bool {
    const EXECUTABLE: u32 = 0o111;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & EXECUTABLE != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn all_that_is_missing_is_named_at_once() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = format!("{}:{}", first.path().display(), second.path().display());
        assert_eq!(missing_in(&path).len(), NEEDED.len());
        for (index, (tool, _)) in NEEDED.iter().enumerate().skip(2) {
            let file = [&first, &second][index % 2].path().join(tool);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // There, and not a program.
        fs::write(second.path().join("mount"), "").unwrap();
        assert_eq!(missing_in(&path), ["mount (Debian's package mount)", "umount (Debian's package mount)"]);
    }

    /// The names in calls of [`crate::tool`], and the tools that make file systems, which are chosen by name.
    fn called_in(source: &str) -> BTreeSet<String> {
        let calls =
            ["tool::run(\"", "tool::succeed(\""].into_iter().flat_map(|call| source.split(call).skip(1));
        let makers = source.split("=> \"mkfs.").skip(1).map(|rest| ("mkfs.", rest));
        let named = calls.map(|rest| ("", rest)).chain(makers);
        named.map(|(start, rest)| format!("{start}{}", rest.split('"').next().unwrap_or_default())).collect()
    }

    fn called_under(directory: &Path) -> BTreeSet<String> {
        let mut called = BTreeSet::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                called.append(&mut called_under(&path));
            } else if !path.ends_with("needed.rs") {
                let text = fs::read_to_string(&path).unwrap();
                called.append(&mut called_in(text.split("#[cfg(test)]").next().unwrap_or_default()));
            }
        }
        called
    }

    #[test]
    fn the_list_has_what_is_called() {
        let mut called = called_under(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        // Of the fabric that is only for trying things out.
        assert!(called.remove("losetup"));
        let needed: BTreeSet<String> = NEEDED.iter().map(|(tool, _)| (*tool).to_owned()).collect();
        assert_eq!(called, needed);
    }
}

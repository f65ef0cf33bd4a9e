//! `/proc/self/mountinfo`: proc(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::MountEntry;
use crate::fabric::DeviceId;

/// Parses the whole table, or says which line it cannot read: a table with a hole proves nothing.
pub(super) fn parse(text: &str) -> Result<Vec<MountEntry>, String> {
    text.lines()
        .map(|line| entry(line).ok_or_else(|| format!("mountinfo has an unreadable line: {line:?}")))
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn entry(line: &str) -> Option<MountEntry> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (major, minor) = mount.next()?.split_once(':')?;
    let root = unescape(mount.next()?)?;
    let path = PathBuf::from(OsString::from_vec(unescape(mount.next()?)?));
    let mount_options = mount.next()?;
    let mut file_system = file_system.split(' ');
    let fs_type = file_system.next()?.to_owned();
    // Some file systems have no source, and the kernel then prints nothing between the spaces.
    let file_system_options = file_system.nth(1).unwrap_or_default();
    let options: Vec<String> =
        mount_options.split(',').chain(file_system_options.split(',')).map(str::to_owned).collect();
    Some(MountEntry {
        device: DeviceId::Number { major: major.parse().ok()?, minor: minor.parse().ok()? },
        root: String::from_utf8_lossy(&root).into_owned(),
        path,
        fs_type,
        read_only: options.iter().any(|option| option == "ro"),
        options,
    })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..3)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 8).ok()?);
        rest = after.get(3..)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TABLE: &str = r"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
41 22 0:36 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
90 22 7:3 / /var/lib/kubelet/plugins/pv\040one/globalmount rw,noatime shared:9 master:2 - xfs /dev/loop3 rw,attr2,noquota
91 22 7:3 /sub /var/lib/kubelet/pods/a/subpath ro,noatime - xfs /dev/loop3 rw,attr2,noquota
92 22 0:50 / /empty-source rw - tmpfs  rw,size=4k
93 22 7:4 / /frozen rw,relatime - ext4 /dev/loop4 ro
";

    #[test]
    fn entries_have_device_root_path_and_options() {
        let table = parse(TABLE).unwrap();
        assert_eq!(table.len(), 6);
        let staged = &table[2];
        assert_eq!(staged.device, DeviceId::Number { major: 7, minor: 3 });
        assert_eq!(staged.path, Path::new("/var/lib/kubelet/plugins/pv one/globalmount"));
        assert_eq!((staged.root.as_str(), staged.fs_type.as_str(), staged.read_only), ("/", "xfs", false));
        assert!(staged.options.iter().any(|option| option == "noatime"));
        assert_eq!((table[3].root.as_str(), table[3].read_only), ("/sub", true));
        assert_eq!(table[4].fs_type, "tmpfs");
        assert!(table[5].read_only, "a read-only file system under a writable mount");
    }

    #[test]
    fn an_unreadable_line_spoils_the_table() {
        for line in [
            "",
            "1 2 3",
            "22 1 254:0 / / rw - ",
            "22 1 x:0 / / rw - ext4 a rw",
            r"22 1 7:0 / /a\04 rw - ext4 a rw",
        ] {
            let result = parse(&format!("{TABLE}{line}\n"));
            let readable_as = result.as_ref().ok().and_then(|table| table.last());
            assert!(result.is_err() || line.ends_with("- "), "{line:?} read as {readable_as:?}");
        }
    }
}

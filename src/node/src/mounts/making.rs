//! Making a file system, and checking one before it is mounted.
//!
//! **Making.** Never forced, so that what is mounted or held is refused; that it is empty is the caller's proof, as
//! `mkfs.ext4` asks about signatures only on a terminal. The tools' defaults are kept but for two, and options from
//! the class come after these and so have the last word:
//!
//! - No discard (`-E nodiscard`, `-K`). The device has just been read as zeros, so a discard frees nothing, and it
//!   would be the largest single command that the appliance ever gets.
//! - Nothing of an ext4 is reserved for root (`-m 0`): a volume is one workload's, and the reserve, a twentieth of it,
//!   would be lost to every pod that does not run as root. Kubernetes' own mounter does the same.
//!
//! **Checking.** An ext4 is given to `e2fsck -p` before each writable mount. It decides itself by the superblock what
//! is to do: a clean file system takes it one read of the superblock and the group descriptors, some milliseconds;
//! after a crash it replays the journal; where the kernel has logged errors it checks everything and mends what is safe
//! to mend without asking. Nothing is ever answered with yes for the user (`-y`). XFS has no such check: mounting
//! replays its log, and what it then refuses is for `xfs_repair` in a person's hands; `-L`, which throws the log
//! away, is never used. A file system that is only read is not checked. The kernel replays its journal all the same:
//! without that (`noload`, `norecovery`) the reader would see a state that never was, and nobody else is attached
//! whom the writing could disturb.

use std::ffi::OsStr;
use std::time::Duration;

use state_machine::FsType;

use super::MountError;
use crate::fabric::Device;
use crate::tool;

/// What tells `mke2fs -E` to discard nothing.
const NO_DISCARD: &str = "nodiscard";
/// How long making a file system may take, in ms.
const FORMAT_LIMIT_MS: u64 = 600_000;
/// How long a check may take, in ms: a file system of some TB with logged errors is read whole. kubelet does not wait
/// that long, and is told that the stage still runs.
const CHECK_LIMIT_MS: u64 = 4 * 3_600_000;
/// What is set in the exit status of `e2fsck` when it mended something, and all is well.
const MENDED: i32 = 1;
/// The exit status of `e2fsck` when it could not begin, and what it says if somebody else has the device exclusively.
const NOT_DONE: i32 = 8;
const IN_USE: &str = "is in use";
/// What the exit status of `e2fsck` says when all is not: e2fsck(8).
const COMPLAINTS: [(i32, &str); 6] = [
    (2, "it asks for a reboot"),
    (4, "it has errors that are not mended without a person's decision"),
    (8, "the check could not be done"),
    (16, "the check was called wrongly"),
    (32, "the check was broken off"),
    (128, "the check could not be started"),
];

/// Makes a file system with the class's options.
pub(super) async fn format(device: &Device, fs_type: FsType, options: &[String]) -> Result<(), MountError> {
    let tool = match fs_type {
        FsType::Ext4 => "mkfs.ext4",
        FsType::Xfs => "mkfs.xfs",
    };
    let options = options_of(fs_type, options);
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.push(device.path.as_os_str());
    tool::succeed(tool, &arguments, Duration::from_millis(FORMAT_LIMIT_MS)).await?;
    Ok(())
}

/// Our options, and then the class's.
fn options_of(fs_type: FsType, options: &[String]) -> Vec<String> {
    let defaults: &[&str] = match fs_type {
        FsType::Ext4 => &["-q", "-m", "0", "-E", NO_DISCARD],
        FsType::Xfs => &["-q", "-K"],
    };
    let mut all: Vec<String> = defaults.iter().map(|option| (*option).to_owned()).collect();
    let mut is_extended = false;
    for option in options {
        // Of several `-E`, mke2fs heeds only the last one; of several options within one, too.
        all.push(if is_extended { format!("{NO_DISCARD},{option}") } else { option.clone() });
        is_extended = fs_type == FsType::Ext4 && option == "-E";
    }
    all
}

/// Has the file system checked, and mended where that is safe.
pub(super) async fn check(device: &Device, fs_type: FsType) -> Result<(), MountError> {
    match fs_type {
        FsType::Xfs => return Ok(()),
        FsType::Ext4 => {}
    }
    let limit = Duration::from_millis(CHECK_LIMIT_MS);
    let output = tool::run("e2fsck", &[OsStr::new("-p"), device.path.as_os_str()], limit).await?;
    if output.code == Some(NOT_DONE) && output.complaint().contains(IN_USE) {
        return Err(MountError::Held { path: device.path.clone() });
    }
    let Some(complaint) = complaint(output.code) else {
        if output.code == Some(MENDED) {
            tracing::warn!(volume = %device.volume, said = output.complaint(), "ext4 had errors, mended");
        }
        return Ok(());
    };
    let complaint = format!("{complaint}; e2fsck said: {}", output.complaint());
    Err(MountError::Damaged { path: device.path.clone(), fs_type, complaint })
}

/// What is wrong according to the exit status of `e2fsck -p`, if anything is.
fn complaint(code: Option<i32>) -> Option<String> {
    let Some(code) = code else { return Some("the check was ended by a signal".to_owned()) };
    if code & !MENDED == 0 {
        return None;
    }
    let said: Vec<_> = COMPLAINTS.iter().filter(|(bit, _)| code & bit != 0).map(|(_, said)| *said).collect();
    Some(if said.is_empty() { format!("exit status {code}") } else { said.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_class_says_comes_last_and_takes_nothing_else_back() {
        let made = |fs_type, options: &[&str]| {
            let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
            options_of(fs_type, &options).join(" ")
        };
        assert_eq!(made(FsType::Xfs, &["-i", "size=512"]), "-q -K -i size=512");
        assert_eq!(made(FsType::Ext4, &["-m", "1"]), "-q -m 0 -E nodiscard -m 1");
        assert_eq!(
            made(FsType::Ext4, &["-E", "lazy_itable_init=0,discard", "-T", "news"]),
            "-q -m 0 -E nodiscard -E nodiscard,lazy_itable_init=0,discard -T news"
        );
    }

    #[test]
    fn only_a_sound_or_mended_file_system_passes() {
        for sound in [0, 1] {
            assert_eq!(complaint(Some(sound)), None);
        }
        let rows = [
            (Some(2), "reboot"),
            (Some(3), "reboot"),
            (Some(4), "errors"),
            (Some(5), "errors"),
            (Some(8), "could not be done"),
            (Some(12), "errors that are not mended without a person's decision, the check could not be done"),
            (Some(16), "wrongly"),
            (Some(32), "broken off"),
            (Some(64), "exit status 64"),
            (Some(128), "started"),
            (None, "signal"),
        ];
        for (code, words) in rows {
            let said = complaint(code).unwrap();
            assert!(said.contains(words), "{code:?}: {said}");
        }
    }
}

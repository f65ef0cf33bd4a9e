//! The bug that is planted and the failpoint that is armed.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use crate::{BUGS, Bug};

/// Names the bug that a process has.
const BUG_VARIABLE: &str = "RDS_CSI_PLANTED_BUG";
/// Names the file that arms a failpoint.
const POINT_VARIABLE: &str = "RDS_CSI_FAILPOINT_FILE";
/// Nobody has looked into the environment yet.
const NOT_READ: u8 = u8::MAX;
const NONE: u8 = 0;

static PLANTED: AtomicU8 = AtomicU8::new(NOT_READ);

/// Whether `bug` is planted in this process, by [`plant`] or by its environment.
#[must_use]
pub fn is(bug: Bug) -> bool {
    let planted = PLANTED.load(Ordering::Relaxed);
    if planted != NOT_READ {
        return planted == bug as u8;
    }
    let name = std::env::var(BUG_VARIABLE).unwrap_or_default();
    plant(BUGS.iter().copied().find(|bug| bug.name() == name));
    is(bug)
}

/// Plants `bug` in this process, in place of what was planted.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::Relaxed);
}

/// The time of day, since 1970: for the bug that keeps deadlines by it.
#[must_use]
pub fn civil_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A failpoint. If the file that arms them has its name, the file is removed and the process dies at once.
pub fn point(name: &'static str) {
    if once(name) {
        // No destructor runs and no buffer is flushed.
        process::abort();
    }
}

/// Whether the file that arms failpoints has this name; then it is removed.
pub fn once(name: &'static str) -> bool {
    armed(name).is_some_and(|file| fs::remove_file(file).is_ok())
}

/// Whether the file that arms failpoints has this name, and as long as it has. A file beside it, `.felt`, then says that
/// somebody came by.
pub fn lasting(name: &'static str) -> bool {
    armed(name).is_some_and(|file| fs::write(file.with_extension("felt"), name).is_ok())
}

fn armed(name: &str) -> Option<&'static PathBuf> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(POINT_VARIABLE).map(PathBuf::from)).as_ref()?;
    fs::read_to_string(file).is_ok_and(|armed| armed.trim() == name).then_some(file)
}

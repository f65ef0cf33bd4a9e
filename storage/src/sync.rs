//! How sled's writes get to the disk.
//!
//! sled calls data stable, answers a flush and overwrites what that data replaced as soon as `sync_file_range` has
//! returned. That call waits for the pages alone: neither for the file's new length and extents nor for the
//! device's cache. After a power cut the replaced data is then overwritten and the new data not there, and a flush
//! that was synced later does not help: the order on the disk was wrong before it. So in every program that links
//! this crate the C function of that name is the one below, and what sled calls stable is on the disk.

// sled offers no hook; the linker does.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a sync takes longer while the failpoint `sync-slow` is armed: several heartbeats.
const SLOW_SYNC: Duration = Duration::from_millis(200);

use planted::Bug;

/// How often sled's data was synced in this process.
static SYNCS: AtomicU64 = AtomicU64::new(0);
/// Whether the kernel may keep the data to itself.
static LEFT_TO_THE_KERNEL: AtomicBool = AtomicBool::new(false);

/// How often sled's data was synced in this process: it grows with each flush that had something to write.
pub(crate) fn syncs() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

/// Ends all syncing of sled's data in this process, so that acknowledged writes are lost in a power cut: for the
/// test which shows that it sees that.
#[doc(hidden)]
pub fn leave_writes_to_the_kernel() {
    LEFT_TO_THE_KERNEL.store(true, Ordering::Relaxed);
}

/// Takes the place of the C library's `sync_file_range(2)`, with its result, and syncs all of the file.
// SAFETY: the signature is that of the function that it replaces, and its caller gets more than it asked for.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: c_int, _offset: i64, _bytes: i64, _flags: u32) -> c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    if LEFT_TO_THE_KERNEL.load(Ordering::Relaxed) || planted::is(Bug::NoFsync) {
        return 0;
    }
    if planted::lasting("sync-slow") {
        std::thread::sleep(SLOW_SYNC);
    }
    if planted::once("sync-error") {
        // SAFETY: it is this thread's own error number, which every call may set.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    // SAFETY: it takes any number, and says EBADF to one that is no open file.
    unsafe { libc::fdatasync(fd) }
}

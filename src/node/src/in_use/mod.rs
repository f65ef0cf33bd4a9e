//! Who holds a block device: asked, and answered by a claim, before it is disconnected.
//!
//! The check fails closed: what cannot be seen is [`Incomplete`], and that is a refusal. It looks for
//!
//! | Holder | Where | Named as |
//! |---|---|---|
//! | an open descriptor of the device or a partition | `/proc/*/fd`, by device number | `process 123 (qemu-kvm)` |
//! | a mount, in whatever namespace | `/proc/*/mountinfo`, once a namespace | `mounted at /x in the mount …` |
//! | device mapper, md | `holders/` in sysfs | `dm-3` |
//! | a loop device | `LOOP_GET_STATUS64` of all | `/dev/loop4` |
//! | swap | `/proc/swaps` | `swap on /dev/…` |
//! | any other exclusive one | `O_EXCL` | `the kernel (…)` |
//!
//! Life cycle: the device is claimed by opening it exclusively, then looked at, then what the kernel still has to
//! write is written out. The claim is kept while the device is disconnected, so nobody can mount it in between. Holders
//! that pass (udev, blkid) are waited for. A device whose path is dead answers the claim with an error; it has no
//! claim then, and the other looks decide.
//!
//! To see all processes takes the machine's own `/proc`: `hostPID: true` in the pod, and CAP_SYS_PTRACE.

mod block;
mod kernel;
mod processes;
#[cfg(test)]
pub(crate) mod simulated;
mod survey;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use tokio::time::{Instant, sleep};

pub(crate) use kernel::{BlockDevices, LinuxBlockDevices};

use crate::own_thread;
use crate::sysfs::{Number, at};
use crate::under_way::UnderWay;

/// At most this many are named in an answer.
const MAX_NAMED: usize = 8;
/// How long a look at all processes may take, in ms.
const LOOK_LIMIT_MS: u64 = 20_000;
/// How long a device must be held to count as in use, in ms: udev probes new ones, and every `losetup` opens all
/// loop devices for a moment.
const PASSING_HOLDER_MS: u64 = 1_000;
/// How often a held device is looked at meanwhile, in ms.
const LOOK_AGAIN_MS: u64 = 20;

/// Where the machine shows itself.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// sysfs(5).
    pub(crate) sysfs: PathBuf,
    /// proc(5).
    pub(crate) proc: PathBuf,
    /// The device nodes.
    pub(crate) dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sysfs: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// How much has to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thoroughness {
    /// All of it.
    Complete,
    /// Whatever can be: for devices that the kernel keeps by itself while they are open. Loop devices are not opened,
    /// which would disturb those who use them.
    Lenient,
}

/// The look could not be completed; the text says at what, and what to do.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Incomplete(String);

/// What came of a claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Nobody holds the device, and as long as this lives nobody mounts it.
    Free(Claim),
    /// Somebody does: in words for people.
    Held(Vec<String>),
}

/// A device that is kept from new exclusive users; a dead one is kept by nothing.
#[derive(Debug)]
pub(crate) struct Claim {
    _open: Option<OwnedFd>,
}

/// The in-use check of one machine.
#[derive(Clone)]
pub(crate) struct InUse {
    check: Arc<Check>,
    looks: Arc<UnderWay<Number>>,
    surveys: Arc<UnderWay<()>>,
}

struct Check {
    roots: Roots,
    thoroughness: Thoroughness,
    blocks: Arc<dyn BlockDevices>,
}

impl InUse {
    /// The check over these roots.
    pub(crate) fn new(roots: Roots, thoroughness: Thoroughness, blocks: Arc<dyn BlockDevices>) -> Self {
        let check = Arc::new(Check { roots, thoroughness, blocks });
        Self { check, looks: Arc::default(), surveys: Arc::default() }
    }

    /// Claims the device of this path and number, unless somebody holds it for longer than a moment.
    pub(crate) async fn claim(&self, path: &Path, number: Number) -> Result<Claimed, Incomplete> {
        let until = Instant::now() + Duration::from_millis(PASSING_HOLDER_MS);
        loop {
            let claimed = self.look(path, number).await?;
            if matches!(claimed, Claimed::Free(_)) || Instant::now() >= until {
                return Ok(claimed);
            }
            sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
        }
    }

    async fn look(&self, path: &Path, number: Number) -> Result<Claimed, Incomplete> {
        let mark = self
            .looks
            .begin(number)
            .ok_or_else(|| Incomplete(format!("an earlier look at {} still hangs", path.display())))?;
        let (check, device) = (self.check.clone(), path.to_path_buf());
        let work = move || {
            let claimed = check.look(&device, number);
            drop(mark);
            claimed
        };
        let failed = |error: own_thread::Unfinished| Incomplete(format!("{}: {error}", path.display()));
        let looking = own_thread::start("in-use", work, drop).map_err(failed)?;
        own_thread::wait(looking, Duration::from_millis(LOOK_LIMIT_MS)).await.map_err(failed)?
    }
}

impl Check {
    fn look(&self, path: &Path, number: Number) -> Result<Claimed, Incomplete> {
        let blocks = self.blocks.as_ref();
        let complete = self.thoroughness == Thoroughness::Complete;
        if blocks.number_of(path).map_err(at(path))? != Some(number) {
            let (major, minor) = number;
            let what = format!("{} is not the device {major}:{minor}", path.display());
            return Err(Incomplete(format!("{what}; the container needs the host's device nodes")));
        }
        let exclusively_held =
            "the kernel (a mount in a namespace without processes, device mapper, md or swap)";
        let (claim, busy) = match blocks.claim(path) {
            Ok(claim) => (Some(claim), false),
            Err(error) if is(&error, Errno::BUSY) => (None, true),
            Err(error) if is_dead(&error) => {
                tracing::warn!(device = %path.display(), %error, "its path is dead, it is not claimed");
                (None, false)
            }
            Err(error) => return Err(at(path)(error).into()),
        };
        let family = block::family(&self.roots, number)?;
        let mut holders = family.holders;
        holders.extend(self.holders_of(&family.numbers, claim.as_ref())?.into_iter().map(|(_, who)| who));
        // Who has a device open and its partition too is one holder.
        holders.dedup();
        if busy && holders.is_empty() {
            holders.push(exclusively_held.to_owned());
        }
        if !holders.is_empty() {
            return Ok(Claimed::Held(named(holders)));
        }
        if let (Some(claim), true) = (&claim, complete) {
            self.flush(path, claim)?;
        }
        Ok(Claimed::Free(Claim { _open: claim }))
    }

    /// Who holds these devices, each with the device: all but what lies over them, and what only a claim shows.
    fn holders_of(
        &self,
        numbers: &[Number],
        claim: Option<&OwnedFd>,
    ) -> Result<Vec<(Number, String)>, Incomplete> {
        let mut holders = self.processes(numbers, claim)?;
        if self.thoroughness == Thoroughness::Complete {
            let blocks = self.blocks.as_ref();
            holders.extend(block::swap(&self.roots, numbers, blocks)?);
            holders.extend(block::loop_devices(&self.roots, numbers, blocks)?);
        }
        Ok(holders)
    }

    fn processes(
        &self,
        numbers: &[Number],
        claim: Option<&OwnedFd>,
    ) -> Result<Vec<(Number, String)>, Incomplete> {
        let proc = &self.roots.proc;
        let complete = self.thoroughness == Thoroughness::Complete;
        if complete && !processes::shows_all_processes(proc)? {
            let what = format!("{} does not show all processes of the machine", proc.display());
            return Err(Incomplete(format!("{what}; the pod needs hostPID: true")));
        }
        let except = match claim {
            None => None,
            Some(claim) => {
                let link = proc.join("self");
                let own = fs::read_link(&link).map_err(at(&link))?;
                Some(own.join("fd").join(claim.as_raw_fd().to_string()))
            }
        };
        let sought = processes::Sought { numbers, except, blocks: self.blocks.as_ref() };
        let found = processes::look(proc, &sought)?;
        if !found.unseen.is_empty() {
            let unseen = named(found.unseen).join(", ");
            if complete {
                let what = format!("{unseen} may not be looked into; the container needs root and");
                return Err(Incomplete(format!("{what} CAP_SYS_PTRACE")));
            }
            tracing::debug!(unseen, "not all processes can be looked into");
        }
        Ok(found.holders)
    }

    fn flush(&self, path: &Path, claim: &OwnedFd) -> Result<(), Incomplete> {
        match self.blocks.flush(claim) {
            Ok(()) => Ok(()),
            // Whoever wrote it is gone, and so is the path: nobody can write it any more.
            Err(error) if is_dead(&error) => {
                tracing::error!(device = %path.display(), %error, "what was written to it last may be lost");
                Ok(())
            }
            Err(error) => {
                Err(Incomplete(format!("what was written to {} last stays there: {error}", path.display())))
            }
        }
    }
}

impl From<io::Error> for Incomplete {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Shortens a list for people.
fn named(mut list: Vec<String>) -> Vec<String> {
    let more = list.len().saturating_sub(MAX_NAMED);
    if more > 0 {
        list.truncate(MAX_NAMED);
        list.push(format!("{more} more"));
    }
    list
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The device's path is lost for good, or the device is about to go.
fn is_dead(error: &io::Error) -> bool {
    [Errno::IO, Errno::NXIO, Errno::NODEV].into_iter().any(|errno| is(error, errno))
}

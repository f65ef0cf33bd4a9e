//! Acknowledged means on disk: the power is cut under a writer, again and again, and nothing acknowledged is lost.
//!
//! A process appends to a store on an ext4 of its own (a loop device) and says on a pipe what was acknowledged. That
//! process is this program again, told by its environment to be the writer.
//! At a random moment the file system is shut down without its journal being flushed, which is what a power cut
//! leaves. It is mounted again and compared with what the pipe said. The same without fdatasync must lose
//! something, or the test could not see a loss. Root is needed, for the mounts.

// The ioctl that shuts a file system down has no safe form.
#![allow(unsafe_code)]

mod common;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::{append, apply, largest, log_id, register, vote};
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder};
use rand::Rng;
use rustix::io::Errno;
use rustix::ioctl;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use storage::{LogEntry, Store};

/// How often the power is cut.
const CUTS: u32 = 100;
/// How often on one file system: while its files grow, more than the data has to get to the disk.
const CUTS_PER_DISK: u32 = 10;
/// How many cuts may pass until the writer without fdatasync has lost something.
const CUTS_WITHOUT_SYNC: u32 = 20;
/// How often the power is cut while a store is opened for the first time.
const CUTS_IN_FIRST_START: u32 = 100;
/// When, in microseconds after the process was started.
const FIRST_START_US: std::ops::Range<u64> = 0..15_000;
/// The file system's size in bytes; the image is sparse.
const IMAGE_BYTES: u64 = 512 * 1024 * 1024;
/// How long a file system may be in use after its writer has ended, and how often that is looked at.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(5);
const UNMOUNT_POLL: Duration = Duration::from_millis(1);
/// How long the writer may take until it acknowledges something.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the writer runs after that, in milliseconds.
const RUN_MS: std::ops::Range<u64> = 5..250;
/// How many appends the writer has under way at once.
const APPENDS_UNDER_WAY: usize = 16;
/// After how many entries the writer votes, and makes a snapshot and purges.
const VOTE_EVERY_ENTRIES: u64 = 70;
const SNAPSHOT_EVERY_ENTRIES: u64 = 1000;
/// How long the writer waits for the others' votes.
const ELECTION: Duration = Duration::from_millis(2);
/// Entries are of a usual size for so long, then of the largest one for as long, and so on.
const SAME_SIZE_ENTRIES: u64 = 150;
/// How many entries before the snapshot the writer keeps.
const KEPT_ENTRIES: u64 = 100;

/// Where the writer's process finds its store, and how far it goes.
const DIR_VARIABLE: &str = "POWER_CUT_DIR";
const SYNC_VARIABLE: &str = "POWER_CUT_SYNC";
const NOTHING: &str = "nothing";
/// The test that the writer's process is started as.
const WRITER_TEST: &str = "nothing_acknowledged_is_lost_in_power_cuts";

#[test]
fn nothing_acknowledged_is_lost_in_power_cuts() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return be_the_writer(Path::new(&dir));
    }
    let started = Instant::now();
    let outcome = cut_power(Sync::Disk, CUTS).expect("the cuts can be made");
    println!("{outcome:?} in {:?}", started.elapsed());
    assert_eq!((outcome.cuts, outcome.lost.as_slice()), (CUTS, [].as_slice()));
}

#[test]
fn without_fdatasync_the_same_test_sees_losses() {
    let outcome = cut_power(Sync::Nothing, CUTS_WITHOUT_SYNC).expect("the cuts can be made");
    println!("{outcome:?}");
    assert!(!outcome.lost.is_empty(), "{CUTS_WITHOUT_SYNC} cuts without fdatasync lost nothing");
}

/// What is not finished then has promised nothing, and must not be in the way of the next start.
#[test]
fn a_power_cut_in_the_first_start_leaves_a_directory_that_opens() {
    let outcome = cut_power_in_first_start(CUTS_IN_FIRST_START).expect("the cuts can be made");
    println!("{outcome:?}");
    assert_eq!((outcome.cuts, outcome.lost.as_slice()), (CUTS_IN_FIRST_START, [].as_slice()));
    assert!(outcome.acknowledged_entries < 100 * u64::from(CUTS_IN_FIRST_START), "the cuts came too late");
}

fn cut_power_in_first_start(cuts: u32) -> Result<Outcome> {
    let mut disk = Disk::create()?;
    let mut outcome = Outcome::default();
    while outcome.cuts < cuts && outcome.lost.is_empty() {
        let dir = disk.mount_point().join(format!("store-{}", outcome.cuts));
        let writer = Writer::start(&dir, Sync::Disk)?;
        thread::sleep(Duration::from_micros(rand::rng().random_range(FIRST_START_US)));
        writer.silence()?;
        disk.cut_power()?;
        let acknowledged = writer.kill_and_collect(&Acknowledged::default())?;
        disk.remount()?;
        outcome.cuts += 1;
        outcome.acknowledged_entries += acknowledged.index;
        if let Err(lost) = check(&dir, &acknowledged) {
            outcome.lost.push(format!("cut {}: {lost:#}", outcome.cuts));
        }
    }
    Ok(outcome)
}

/// What the writer's process syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// All, as usual.
    Disk,
    /// Nothing that sled writes.
    Nothing,
}

/// What came of the cuts.
#[derive(Debug, Default)]
struct Outcome {
    cuts: u32,
    acknowledged_entries: u64,
    acknowledged_votes: u64,
    lost: Vec<String>,
}

/// Cuts the power up to `cuts` times, until something is lost.
fn cut_power(sync: Sync, cuts: u32) -> Result<Outcome> {
    let mut disk = Disk::create()?;
    let mut outcome = Outcome::default();
    let mut before = Acknowledged::default();
    while outcome.cuts < cuts && outcome.lost.is_empty() {
        if outcome.cuts > 0 && outcome.cuts.is_multiple_of(CUTS_PER_DISK) {
            disk = Disk::create()?;
            before = Acknowledged::default();
        }
        let mut writer = Writer::start(&disk.store(), sync)?;
        writer.wait_for_first()?;
        thread::sleep(Duration::from_millis(rand::rng().random_range(RUN_MS)));
        writer.silence()?;
        disk.cut_power()?;
        let acknowledged = writer.kill_and_collect(&before)?;
        disk.remount()?;
        outcome.cuts += 1;
        outcome.acknowledged_entries += acknowledged.index - before.index;
        outcome.acknowledged_votes += acknowledged.term - before.term;
        match check(&disk.store(), &acknowledged) {
            Ok(found) => before = found,
            Err(lost) => outcome.lost.push(format!("cut {}: {lost:#}", outcome.cuts)),
        }
    }
    Ok(outcome)
}

/// The newest of each that the writer said to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Acknowledged {
    index: u64,
    term: u64,
    snapshot: u64,
}

impl Acknowledged {
    /// Takes up a line from the writer; others come from the test harness.
    fn take(&mut self, line: &str) -> bool {
        let Some((what, number)) = line.split_once(' ') else { return false };
        let Ok(number) = number.parse::<u64>() else { return false };
        let newest = match what {
            "entry" => &mut self.index,
            "vote" => &mut self.term,
            "snapshot" => &mut self.snapshot,
            _ => return false,
        };
        *newest = number.max(*newest);
        true
    }
}

/// Opens the store and compares; what is there now. sled panics on some of what a lost write leaves: lost as well.
fn check(dir: &Path, acknowledged: &Acknowledged) -> Result<Acknowledged> {
    match panic::catch_unwind(|| compare(dir, acknowledged)) {
        Ok(compared) => compared,
        Err(_) => bail!("the store cannot be read: it panics"),
    }
}

fn compare(dir: &Path, acknowledged: &Acknowledged) -> Result<Acknowledged> {
    let mut store = Store::open(dir).context("cannot open the store")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (state, entries, vote) = runtime.block_on(async {
        let state = store.log.get_log_state().await?;
        let entries = store.log.try_get_log_entries(..).await?;
        anyhow::Ok((state, entries, store.log.read_vote().await?))
    })?;
    let found = Acknowledged {
        index: state.last_log_id.map_or(0, |id| id.index),
        term: vote.map_or(0, |vote| vote.leader_id.term),
        snapshot: store.machine.applied_index(),
    };
    for (what, found, acknowledged) in [
        ("entry", found.index, acknowledged.index),
        ("vote", found.term, acknowledged.term),
        ("snapshot", found.snapshot, acknowledged.snapshot),
    ] {
        ensure!(
            found >= acknowledged,
            "{what} {acknowledged} was acknowledged, the last one there is {found}"
        );
    }
    for entry in entries {
        ensure!(entry == expected(entry.log_id.index), "entry {} is another one", entry.log_id.index);
    }
    Ok(found)
}

/// The writer's process: this test binary again.
struct Writer {
    process: Child,
    lines: mpsc::Receiver<String>,
    acknowledged: Acknowledged,
}

impl Writer {
    fn start(dir: &Path, sync: Sync) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", WRITER_TEST, "--nocapture"]);
        command.env(DIR_VARIABLE, dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        if sync == Sync::Nothing {
            command.env(SYNC_VARIABLE, NOTHING);
        }
        let mut process = command.spawn().context("cannot start the writer")?;
        let output = process.stdout.take().context("the writer has no output")?;
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the writer never waits for the test.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, lines, acknowledged: Acknowledged::default() })
    }

    fn wait_for_first(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).context("the writer acknowledges nothing")?;
            if self.acknowledged.take(&line) {
                return Ok(());
            }
        }
    }

    /// Has the writer say nothing more, whatever it is in the middle of. A machine without power says nothing either;
    /// this one would go on, and ext4 answers a sync with success if its journal was given up while the data was on
    /// its way.
    fn silence(&self) -> Result<()> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::STOP).context("cannot stop the writer")
    }

    /// Ends the writer; all that it acknowledged, in this run or before it.
    fn kill_and_collect(mut self, before: &Acknowledged) -> Result<Acknowledged> {
        self.process.kill().context("cannot kill the writer")?;
        self.process.wait()?;
        for line in self.lines.iter() {
            self.acknowledged.take(&line);
        }
        let now = &self.acknowledged;
        Ok(Acknowledged {
            index: now.index.max(before.index),
            term: now.term.max(before.term),
            snapshot: now.snapshot.max(before.snapshot),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It is gone already unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An ext4 on a loop device over a file, all of which go when it is dropped.
struct Disk {
    /// Holds the image and the mount point.
    dir: tempfile::TempDir,
    device: PathBuf,
    mounted: bool,
}

impl Disk {
    fn create() -> Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        ensure!(is_root, "the power-cut tests mount file systems: run them as root");
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        fs::create_dir(dir.path().join("mounted"))?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image))?;
        let mut disk = Self { dir, device: PathBuf::from(device.trim()), mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn store(&self) -> PathBuf {
        self.mount_point().join("store")
    }

    fn mount(&mut self) -> Result<()> {
        mount(&self.device, self.mount_point(), c"ext4", MountFlags::empty(), None)
            .context("cannot mount")?;
        self.mounted = true;
        Ok(())
    }

    fn remount(&mut self) -> Result<()> {
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        loop {
            self.unmount(deadline)?;
            self.mount()?;
            // Where another mount namespace has a copy of the mount, this is still the one that was shut down.
            match File::open(self.mount_point()).and_then(|root| root.sync_all()) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("cannot be mounted again");
                }
                Err(_) => thread::sleep(UNMOUNT_POLL),
            }
        }
    }

    fn unmount(&mut self, deadline: Instant) -> Result<()> {
        // Another test's child has this one's open files too, from its fork to its exec.
        while let Err(error) = unmount(self.mount_point(), UnmountFlags::empty()) {
            ensure!(error == Errno::BUSY && Instant::now() < deadline, "cannot unmount: {error}");
            thread::sleep(UNMOUNT_POLL);
        }
        self.mounted = false;
        Ok(())
    }

    /// Nothing gets to the device any more, not even the journal.
    fn cut_power(&self) -> Result<()> {
        /// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`.
        const SHUTDOWN: ioctl::Opcode = ioctl::opcode::read::<u32>(b'X', 125);
        /// `EXT4_GOING_FLAGS_NOLOGFLUSH`.
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(self.mount_point())?;
        // SAFETY: the ioctl reads one u32 through the pointer that the setter gives it, and changes no memory.
        unsafe { ioctl::ioctl(&root, ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
            .context("cannot shut the file system down")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = unmount(self.mount_point(), UnmountFlags::DETACH)
        {
            eprintln!("cannot unmount {}: {error}", self.mount_point().display());
        }
        if let Err(error) = run(Command::new("losetup").arg("--detach").arg(&self.device)) {
            eprintln!("cannot detach {}: {error:#}", self.device.display());
        }
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What the writer appends at `index`.
fn expected(index: u64) -> LogEntry {
    if (index / SAME_SIZE_ENTRIES).is_multiple_of(2) { register(index) } else { largest(index) }
}

/// Appends, votes, makes snapshots and purges until the disk fails or the process is killed.
fn be_the_writer(dir: &Path) {
    if std::env::var(SYNC_VARIABLE).is_ok_and(|value| value == NOTHING) {
        storage::leave_writes_to_the_kernel();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    // The harness may have begun a line.
    println!();
    let ended = runtime.block_on(write(dir));
    println!("ended: {ended:?}");
}

async fn write(dir: &Path) -> Result<()> {
    let mut store = Store::open(dir)?;
    let mut term = store.log.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
    let mut next = store.log.get_log_state().await?.last_log_id.map_or(0, |id| id.index + 1);
    let mut applied = store.machine.applied_log_id().map_or(0, |id| id.index + 1);
    let mut under_way = VecDeque::new();
    loop {
        let count = rand::rng().random_range(1..=4);
        let batch = (next..next + count).map(expected).collect();
        next += count;
        under_way.push_back((next - 1, append(&mut store.log, batch).await?));
        if under_way.len() < APPENDS_UNDER_WAY {
            continue;
        }
        let votes = next % VOTE_EVERY_ENTRIES < count;
        let Some((mut index, flushed)) = under_way.pop_front() else { continue };
        flushed.await?;
        say("entry", index);
        if votes {
            // A vote alone: no append's sync carries it to the disk.
            for (last, flushed) in under_way.drain(..) {
                flushed.await?;
                say("entry", last);
                index = last;
            }
            term += 1;
            store.log.save_vote(&vote(term)).await?;
            say("vote", term);
            tokio::time::sleep(ELECTION).await;
        }
        if index + 1 >= applied + SNAPSHOT_EVERY_ENTRIES {
            apply(&mut store.machine, (applied..=index).map(expected).collect()).await;
            applied = index + 1;
            store.machine.build_snapshot().await?;
            say("snapshot", index);
            store.log.purge(log_id(index - KEPT_ENTRIES)).await?;
        }
    }
}

fn say(what: &str, number: u64) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{what} {number}").and_then(|()| output.flush()).expect("the test listens");
}

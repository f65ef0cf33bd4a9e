//! `chaos bugs`: shows that the suite sees. Each bug that can be planted is planted, one at a time, and looked for
//! until an invariant is broken: first by the simulator, then, where that finds nothing, with real processes.
//!
//! Both are this same program, started anew: the simulator is told with `--bug`, and the driver's own processes by
//! their environment. They agree on one line, `violation: <invariant>: <text>`, the first of which is what found the
//! bug. A line `found: <text>` says after how much, such as after how many seeds. Real processes make above all the
//! faults that the bug is a bug in, each of which an ordinary run makes too. A bug that nothing finds fails the command.

use std::fmt;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use planted::{BUGS, Bug};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// How much longer than it was told to the simulator may play: the seed that it is in, and its verdict.
const SIM_GRACE: Duration = Duration::from_secs(60);
/// How much longer than they were told to real processes may run: each phase of a run has a bound of its own, and few
/// runs need them all.
const PROCESSES_GRACE: Duration = Duration::from_secs(420);
/// How long the clients of a run may take to end, in seconds: what a bug has broken answers nobody.
const PATIENCE_SECONDS: &str = "30";
/// How long a child may take to clean up once it is told to end.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Lines of a child that may wait to be read.
const LINES_QUEUED: usize = 64;
/// Has a process plant the bug of this name.
const BUG_VARIABLE: &str = "RDS_CSI_PLANTED_BUG";
/// Where a child puts what a failed run leaves.
const DIRECTORY_VARIABLE: &str = "TMPDIR";
/// What the line begins with that says what was broken, in whatever case.
const VIOLATION: &str = "violation: ";
/// What the line begins with that says after how much.
const FOUND: &str = "found: ";

/// What to look for, and how long.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Looks for this bug alone, and for others that are named like it
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many seeds the simulator tries for a bug
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// How long the simulator may take for them, in seconds; 0 leaves it out
    #[arg(long, default_value_t = 60)]
    sim_seconds: u64,
    /// How long real processes run for a bug that the simulator did not find, in seconds; 0 leaves them out
    #[arg(long, default_value_t = 60)]
    run_seconds: u64,
    /// How often they run until they have found it
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// The faults that real processes make for a bug, by their names in a run's table.
fn faults(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::NoFsync => &["power cut on two", "power cut on three"],
        Bug::VoteNotPersisted => &["all controllers killed", "killed after vote"],
        Bug::NoLeaseCheck => &["partition both ways"],
        Bug::WallClockReaper => &["wall clock jumps"],
        Bug::LimitBeforeForwarding | Bug::RevokingNotCounted => &["leader killed", "node plugin stopped"],
        Bug::SnapshotWithoutTombstones => &["replica wiped", "rolling restart"],
        Bug::AnswerBeforeCommit => &["fsync slow", "partition both ways"],
        Bug::RetryDuplicates => &["leader killed"],
        Bug::NoFence => &["appliance commands late and twice"],
        Bug::NoPermission => &["leader killed", "node plugin killed"],
        Bug::LostSessionIsProof => &["node plugin stopped", "node plugin killed"],
        Bug::ReapsInUse | Bug::ClockRestarts => &["leader killed", "follower killed"],
        Bug::CreateUndoneByRetry => &["appliance answers lost"],
        Bug::LateAttempts => &["partition both ways", "leader stopped past its lease"],
    }
}

/// Who looks for a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Simulator,
    Processes,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Simulator => "simulator",
            Self::Processes => "processes",
        })
    }
}

/// What one child said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// The first broken invariant, and the sentence.
    violation: Option<(String, String)>,
    /// After how much.
    after: Option<String>,
    /// Its last line.
    last: String,
    /// It ended well, and in its time.
    is_good: bool,
}

impl Said {
    fn take(&mut self, line: &str) {
        let is_violation = |head: &str| head.eq_ignore_ascii_case(VIOLATION);
        if let Some((_, violation)) =
            line.split_at_checked(VIOLATION.len()).filter(|(head, _)| is_violation(head))
        {
            let (invariant, what) = violation.split_once(": ").unwrap_or((violation, ""));
            self.violation.get_or_insert_with(|| (invariant.to_owned(), what.to_owned()));
        } else if let Some(after) = line.strip_prefix(FOUND) {
            self.after.get_or_insert_with(|| after.to_owned());
        }
        if !line.trim().is_empty() {
            line.clone_into(&mut self.last);
        }
    }
}

/// A row of the table.
#[derive(Debug)]
struct Finding {
    by: By,
    said: Said,
    after: String,
    seconds: f64,
}

/// Looks for the bugs, prints the table, and fails if one is not found.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    if !cfg!(planted) {
        bail!(
            "no bug can be planted in this program: build it with RUSTC_WORKSPACE_WRAPPER=$PWD/chaos/planted-build \
             cargo build -p chaos -p rds-csi"
        );
    }
    let bugs = chosen(&arguments.only)?;
    println!("{:<28} {:<10} {:<9} {:>8}  AFTER", "BUG", "FOUND BY", "INVARIANT", "SECONDS");
    let (mut missed, mut sentences) = (Vec::new(), Vec::new());
    for bug in bugs {
        let Some(finding) = look_for(bug, &arguments, &mut sentences).await? else {
            println!("{:<28} not found", bug.name());
            missed.push(bug.name());
            continue;
        };
        let Finding { by, said, after, seconds } = finding;
        let (invariant, what) = said.violation.unwrap_or_default();
        println!("{:<28} {by:<10} {invariant:<9} {seconds:>8.1}  {after}", bug.name());
        sentences.push(format!("{}: {invariant}: {what}", bug.name()));
    }
    println!("\n{}", sentences.join("\n"));
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nnot found: {}", missed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn chosen(names: &[String]) -> Result<Vec<Bug>> {
    if names.is_empty() {
        return Ok(BUGS.to_vec());
    }
    let named = |name: &String| {
        let bug = BUGS.iter().copied().find(|bug| bug.name() == name);
        bug.with_context(|| {
            let all: Vec<_> = BUGS.iter().map(|bug| bug.name()).collect();
            format!("there is no bug {name}; there are {}", all.join(", "))
        })
    };
    names.iter().map(named).collect()
}

/// Has the simulator and then real processes look for the bug. Where one of them fails and finds nothing, that is told.
async fn look_for(bug: Bug, arguments: &Arguments, told: &mut Vec<String>) -> Result<Option<Finding>> {
    let begun = Instant::now();
    let (sim_seconds, run_seconds) = (arguments.sim_seconds, arguments.run_seconds);
    let (seeds, minutes) = (arguments.seeds.to_string(), sim_seconds.div_ceil(60).to_string());
    let seconds = run_seconds.to_string();
    let sim = ["sim", "--bug", bug.name(), "--seeds", &seeds, "--minutes", &minutes];
    // A bug may keep leaders from being killed as often as a run of its own wants.
    let mut run = vec!["run", "--seconds", &seconds, "--min-kills", "0", "--patience", PATIENCE_SECONDS];
    run.extend(faults(bug).iter().flat_map(|name| ["--fault", *name]));
    let rounds = if run_seconds > 0 { arguments.rounds } else { 0 };
    let sim_limit = Duration::from_secs(sim_seconds) + SIM_GRACE;
    let run_limit = Duration::from_secs(run_seconds) + PROCESSES_GRACE;
    let by_sim = (sim_seconds > 0).then_some((By::Simulator, 1, &sim[..], None, sim_limit));
    let by_run = (1..=rounds).map(|round| (By::Processes, round, &run[..], Some(bug), run_limit));
    for (by, round, words, planted, limit) in by_sim.into_iter().chain(by_run) {
        let said = ask_child(words, planted, limit).await?;
        if said.violation.is_some() {
            let after = said.after.clone().unwrap_or_else(|| format!("{round} rounds of {run_seconds} s"));
            return Ok(Some(Finding { by, said, after, seconds: begun.elapsed().as_secs_f64() }));
        }
        if !said.is_good {
            told.push(format!("{}: the {by} failed without a violation: {}", bug.name(), said.last));
        }
    }
    Ok(None)
}

/// Runs this program with these words until it ends or the time is over; with a bug in its environment, if one is
/// given.
async fn ask_child(words: &[&str], planted: Option<Bug>, limit: Duration) -> Result<Said> {
    let program = std::env::current_exe().context("find this program")?;
    // A run that finds a bug has failed, and failed runs keep everything.
    let directory = TempDir::with_prefix("bug-").context("make a directory for what a run leaves")?;
    let mut command = Command::new(program);
    command.args(words).envs(planted.map(|bug| (BUG_VARIABLE, bug.name()))).kill_on_drop(true);
    command.env(DIRECTORY_VARIABLE, directory.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start chaos {}", words.join(" ")))?;
    let mut said = Said::default();
    match tokio::time::timeout(limit, listen(&mut child, &mut said)).await {
        Ok(ended) => said.is_good = ended.with_context(|| format!("listen to chaos {}", words.join(" ")))?,
        // A child that takes too long has found nothing more than it said by then.
        Err(_) => {
            said.last = format!("not over after {} s; its last line: {}", limit.as_secs(), said.last);
            end(&mut child).await?;
        }
    }
    Ok(said)
}

/// Ends a child: politely first, since it has namespaces and mounts to take away.
async fn end(child: &mut Child) -> Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM).context("end a child that takes too long")?;
    }
    if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
        child.kill().await.context("kill a child that does not end")?;
    }
    Ok(())
}

/// Takes in what the child says until it ends; says whether it ended well.
async fn listen(child: &mut Child, said: &mut Said) -> Result<bool> {
    let (sender, mut lines) = mpsc::channel(LINES_QUEUED);
    let output = child.stdout.take().context("the child's output")?;
    let errors = child.stderr.take().context("the child's errors")?;
    let readers = (tokio::spawn(read(output, sender.clone())), tokio::spawn(read(errors, sender)));
    while let Some(line) = lines.recv().await {
        said.take(&line);
    }
    readers.0.await??;
    readers.1.await??;
    Ok(child.wait().await?.success())
}

async fn read(from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) -> Result<()> {
    let mut lines = BufReader::new(from).lines();
    while let Some(line) = lines.next_line().await? {
        // Nobody listens any more to a child that took too long.
        if to.send(line).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes;

    #[test]
    fn the_first_violation_is_what_found_it() {
        let mut said = Said::default();
        for line in [
            "12 seeds, 3.5 hours",
            "found: after 12 seeds",
            "VIOLATION: I5: v is reaped again",
            "violation: I1: three nodes",
            "",
        ] {
            said.take(line);
        }
        assert_eq!(said.violation, Some(("I5".to_owned(), "v is reaped again".to_owned())));
        assert_eq!(said.after.as_deref(), Some("after 12 seeds"));
        assert_eq!(said.last, "violation: I1: three nodes");
    }

    #[test]
    fn a_bug_is_known_by_its_name() {
        assert_eq!(chosen(&["no-fence".to_owned()]).unwrap(), [Bug::NoFence]);
        assert_eq!(chosen(&[]).unwrap(), BUGS);
        assert!(chosen(&["no-such-bug".to_owned()]).is_err());
    }

    #[test]
    fn what_is_done_for_a_bug_is_in_ordinary_runs_too() {
        for bug in BUGS {
            assert!(!faults(*bug).is_empty(), "{}", bug.name());
            for name in faults(*bug) {
                let is_known = processes::fault_names().any(|known| known == *name);
                assert!(is_known, "{}: there is no fault {name}", bug.name());
            }
        }
    }

    #[tokio::test]
    async fn a_program_without_bugs_refuses() {
        if cfg!(planted) {
            return;
        }
        let arguments = Arguments { only: Vec::new(), seeds: 1, sim_seconds: 1, run_seconds: 0, rounds: 1 };
        let refusal = run(arguments).await.unwrap_err();
        assert!(refusal.to_string().contains("planted-build"), "{refusal}");
    }
}

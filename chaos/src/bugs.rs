//! `chaos bugs`: shows that the suite sees. Each bug that can be planted is planted, one at a time, and looked for
//! until an invariant is broken: first by the simulator, then, where that finds nothing, with real processes.
//!
//! Both are this same program, started anew: the simulator is told with `--bug`, and the driver's own processes by
//! their environment. They agree on one line, `violation: <invariant>: <text>`, the first of which is what found the
//! bug. A line `found: <text>` says after how much, such as after how many seeds. A bug that nothing finds fails the
//! command.

use std::fmt;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use planted::{BUGS, Bug};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// How much longer than it was told to a child may run, in seconds: it heals, converges and judges at the end.
const GRACE_SECONDS: u64 = 300;
/// Lines of a child that may wait to be read.
const LINES_QUEUED: usize = 64;
/// Has a process plant the bug of this name.
const BUG_VARIABLE: &str = "RDS_CSI_PLANTED_BUG";
/// What the line begins with that says what was broken, in whatever case.
const VIOLATION: &str = "violation: ";
/// What the line begins with that says after how much.
const FOUND: &str = "found: ";

/// What to look for, and how long.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Bugs to plant; all of them if none is named
    names: Vec<String>,
    /// How many seeds the simulator tries for a bug
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// How long the simulator may take for them, in seconds
    #[arg(long, default_value_t = 300)]
    sim_seconds: u64,
    /// How long real processes run for a bug that the simulator did not find, in seconds; 0 leaves them out
    #[arg(long, default_value_t = 180)]
    run_seconds: u64,
}

/// Who looks for a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Simulator,
    Processes,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
    let bugs = chosen(&arguments.names)?;
    println!("{:<30} {:<5} {:<10} {:>9}  AFTER", "BUG", "BY", "IN", "SECONDS");
    let (mut missed, mut sentences) = (Vec::new(), Vec::new());
    for bug in bugs {
        let Some(finding) = look_for(bug, &arguments, &mut sentences).await? else {
            println!("{:<30} not found", bug.name());
            missed.push(bug.name());
            continue;
        };
        let Finding { by, said, seconds } = finding;
        let (invariant, what) = said.violation.unwrap_or_default();
        let after = said.after.unwrap_or_default();
        println!("{:<30} {invariant:<5} {by:<10} {seconds:>9.1}  {after}", bug.name());
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
        bug.with_context(|| format!("there is no bug {name}"))
    };
    names.iter().map(named).collect()
}

/// Has the simulator and then real processes look for the bug. Where one of them fails and finds nothing, that is told.
async fn look_for(bug: Bug, arguments: &Arguments, told: &mut Vec<String>) -> Result<Option<Finding>> {
    let (seeds, minutes) = (arguments.seeds.to_string(), arguments.sim_seconds.div_ceil(60).to_string());
    let seconds = arguments.run_seconds.to_string();
    let sim = ["sim", "--bug", bug.name(), "--seeds", &seeds, "--minutes", &minutes];
    // A bug may keep leaders from being killed as often as a run of its own wants.
    let run = ["run", "--seconds", &seconds, "--min-kills", "0"];
    let ways = [
        (By::Simulator, arguments.sim_seconds, &sim[..], None),
        (By::Processes, arguments.run_seconds, &run[..], Some(bug)),
    ];
    for (by, limit_seconds, words, planted) in ways {
        if limit_seconds == 0 {
            continue;
        }
        let begun = Instant::now();
        let said = ask_child(words, planted, Duration::from_secs(limit_seconds + GRACE_SECONDS)).await?;
        if said.violation.is_some() {
            return Ok(Some(Finding { by, said, seconds: begun.elapsed().as_secs_f64() }));
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
    let mut command = Command::new(program);
    command.args(words).envs(planted.map(|bug| (BUG_VARIABLE, bug.name()))).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start chaos {}", words.join(" ")))?;
    let mut said = Said::default();
    match tokio::time::timeout(limit, listen(&mut child, &mut said)).await {
        Ok(ended) => said.is_good = ended.with_context(|| format!("listen to chaos {}", words.join(" ")))?,
        // A child that takes too long has found nothing more than it said by then.
        Err(_) => child.kill().await.context("end a child that takes too long")?,
    }
    Ok(said)
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

    #[tokio::test]
    async fn a_program_without_bugs_refuses() {
        if cfg!(planted) {
            return;
        }
        let arguments = Arguments { names: Vec::new(), seeds: 1, sim_seconds: 1, run_seconds: 0 };
        let refusal = run(arguments).await.unwrap_err();
        assert!(refusal.to_string().contains("planted-build"), "{refusal}");
    }
}

//! `chaos sim`: plays seeds, one after the other or on several threads, and says what came of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::Rng;
use rustix::time::{ClockId, clock_gettime};

use super::play::{Played, play};
use super::recorder::{self, Breach};
use super::totals::Totals;
use crate::invariants;

/// Seeds that are played if nothing else is said.
const DEFAULT_SEEDS: u64 = 100;
/// From so many seeds on, each kind of fault has to have been there while a migration was under way.
const FULL_RUN_SEEDS: u64 = 300;
/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(5);
/// How many lines of a failing seed's story are shown.
const STORY_SHOWN: usize = 120;
/// Seeds that once failed, or show something.
const LIST: &str = include_str!("../../seeds.txt");

/// Plays seeds in the simulator.
#[derive(Debug, Clone, Args)]
pub struct SimArguments {
    /// How many seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; the others follow it. A fresh one if it is not given.
    #[arg(long)]
    first: Option<u64>,
    /// Ends after so many minutes, whatever is left.
    #[arg(long)]
    minutes: Option<u64>,
    /// Plays the fixed list of seeds instead.
    #[arg(long)]
    list: bool,
    /// Shows the end of each seed's story.
    #[arg(long)]
    story: bool,
    /// Shows the stories while they are told.
    #[arg(long)]
    follow: bool,
    /// A file that keeps the totals of all runs.
    #[arg(long)]
    totals: Option<PathBuf>,
    /// How many threads play.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// A bug to plant; the program has to be built with them.
    #[arg(long)]
    bug: Option<String>,
}

/// The seeds of the list.
pub fn listed() -> Result<Vec<u64>> {
    let lines = LIST.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seed = |line: &str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        word.parse().with_context(|| format!("a line of the list begins with {word:?}, not with a seed"))
    };
    lines.map(seed).collect()
}

/// What is wrong with a seed that was played, and for how many of its volumes that could not be said.
#[must_use]
pub fn judge(played: &Played) -> (Vec<Breach>, usize) {
    let report = invariants::judge(&played.history);
    let judged = report.violations.into_iter();
    let judged = judged.map(|broken| Breach { invariant: broken.invariant.to_owned(), what: broken.what });
    // The history's judges first: they know nothing of the code, which also watches itself while it runs.
    (judged.chain(played.breaches.iter().cloned()).collect(), report.given_up.len())
}

struct Board {
    totals: Totals,
    failures: Vec<(u64, Vec<Breach>)>,
}

struct Run<'a> {
    arguments: &'a SimArguments,
    list: Vec<u64>,
    first: u64,
    count: u64,
    next: AtomicU64,
    playing: AtomicUsize,
    is_over: AtomicBool,
    begun: Instant,
    board: Mutex<Board>,
}

impl SimArguments {
    /// Plays; an error is a violation, or a run that shows too little.
    pub fn run(&self) -> Result<()> {
        plant(self.bug.as_deref())?;
        if self.follow {
            recorder::follow();
        }
        let list = if self.list { listed()? } else { Vec::new() };
        let limit = if self.minutes.is_some() { u64::MAX } else { DEFAULT_SEEDS };
        let count = if self.list { list.len() as u64 } else { self.seeds.unwrap_or(limit) };
        let first = self.first.unwrap_or_else(|| u64::from(rand::rng().random::<u32>()) << 16);
        if !self.list {
            println!("first seed {first}");
        }
        let run = Run {
            arguments: self,
            list,
            first,
            count,
            next: AtomicU64::new(0),
            playing: AtomicUsize::new(self.jobs.max(1)),
            is_over: AtomicBool::new(false),
            begun: Instant::now(),
            board: Mutex::new(Board { totals: Totals::default(), failures: Vec::new() }),
        };
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| run.play_some());
            }
            run.show_progress();
        });
        run.conclude()
    }
}

/// How long this thread has run on a processor.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn plant(name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    let bug = planted::BUGS.iter().copied().find(|bug| bug.name() == name);
    let bug = bug.with_context(|| format!("there is no bug called {name}"))?;
    #[cfg(planted)]
    {
        planted::plant(Some(bug));
        println!("planted: {}", bug.name());
        Ok(())
    }
    #[cfg(not(planted))]
    bail!("{} is not in this program: build it with RUSTC_WORKSPACE_WRAPPER=chaos/planted-build", bug.name())
}

impl Run<'_> {
    fn seed(&self, number: u64) -> Option<u64> {
        let is_late = self
            .arguments
            .minutes
            .is_some_and(|minutes| self.begun.elapsed() >= Duration::from_secs(minutes.saturating_mul(60)));
        if number >= self.count || is_late || self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        match usize::try_from(number).ok().and_then(|number| self.list.get(number)) {
            Some(seed) => Some(*seed),
            None => Some(self.first.wrapping_add(number)),
        }
    }

    fn play_some(&self) {
        while let Some(seed) = self.seed(self.next.fetch_add(1, Ordering::Relaxed)) {
            let (begun, cpu_begun) = (Instant::now(), thread_cpu());
            let played = catch_unwind(AssertUnwindSafe(|| {
                let played = play(seed);
                let judged = judge(&played);
                (played, judged)
            }));
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            board.totals.real_micros += micros(begun.elapsed());
            board.totals.cpu_micros += micros(thread_cpu().saturating_sub(cpu_begun));
            match played {
                Ok((played, judged)) => self.add(&mut board, &played, judged),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                    let what = text.unwrap_or("without words").replace('\n', " ");
                    board.totals.seeds += 1;
                    board.totals.violations += 1;
                    board.failures.push((seed, vec![Breach { invariant: "panic".to_owned(), what }]));
                    self.is_over.store(true, Ordering::Relaxed);
                }
            }
        }
        self.playing.fetch_sub(1, Ordering::Relaxed);
    }

    fn add(&self, board: &mut Board, played: &Played, (breaches, undecided): (Vec<Breach>, usize)) {
        board.totals.add(played);
        board.totals.undecided += undecided as u64;
        if self.arguments.story || !breaches.is_empty() {
            let skipped = played.story.len().saturating_sub(STORY_SHOWN);
            println!("the story of seed {} ends so:", played.seed);
            played.story.iter().skip(skipped).for_each(|line| println!("  {line}"));
            println!("seed {}: digest {:016x}", played.seed, played.digest);
        }
        if !breaches.is_empty() {
            board.totals.violations += 1;
            board.failures.push((played.seed, breaches));
            self.is_over.store(true, Ordering::Relaxed);
        }
    }

    fn show_progress(&self) {
        let mut shown = Instant::now();
        while self.playing.load(Ordering::Relaxed) > 0 {
            thread::sleep(Duration::from_millis(50));
            if shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                println!("{}", self.progress());
            }
        }
    }

    fn progress(&self) -> String {
        let totals = &self.board.lock().unwrap_or_else(PoisonError::into_inner).totals;
        let seconds = self.begun.elapsed().as_secs_f64();
        format!(
            "{} seeds, {:.2} cluster-hours simulated, {:.0} times faster than real time ({:.0} for each busy core), \
             {:.0} faults an hour, {} migrations, {} reaped, {} leaders hit in migration, {} violations, \
             {} volumes undecided",
            totals.seeds,
            totals.cluster_hours(),
            totals.cluster_hours() * 3600.0 / seconds,
            totals.speed_of_a_core(),
            totals.faults_an_hour(),
            totals.migrations,
            totals.reaped,
            totals.leaders_hit_in_migration,
            totals.violations,
            totals.undecided,
        )
    }

    fn conclude(self) -> Result<()> {
        println!("{}", self.progress());
        let board = self.board.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{}", board.totals.table());
        if let Some(path) = &self.arguments.totals {
            let mut all = Totals::load(path)?;
            all.merge(&board.totals);
            all.save(path)?;
            let hours = all.real_micros as f64 / 3.6e9;
            println!(
                "all runs: {} seeds, {:.1} cluster-hours in {hours:.2} thread-hours, {:.0} times faster than real time \
                 for each busy core, {:.0} faults an hour, {} migrations, {} violations",
                all.seeds,
                all.cluster_hours(),
                all.speed_of_a_core(),
                all.faults_an_hour(),
                all.migrations,
                all.violations
            );
        }
        for (seed, breaches) in &board.failures {
            println!("failing seed {seed}: chaos sim --first {seed} --seeds 1 --story");
            breaches.iter().for_each(|breach| println!("violation: {}: {}", breach.invariant, breach.what));
        }
        if !board.failures.is_empty() {
            println!("found: after {} seeds", board.totals.seeds);
            bail!("{} seeds broke an invariant", board.failures.len());
        }
        if board.totals.seeds == 0 {
            bail!("no seed was played");
        }
        let never = board.totals.never_in_migration();
        if board.totals.seeds >= FULL_RUN_SEEDS && !never.is_empty() {
            bail!("never there while a migration was under way: {}", never.join(", "));
        }
        Ok(())
    }
}

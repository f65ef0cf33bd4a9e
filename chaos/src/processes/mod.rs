//! Chaos with real processes: three controllers, node plugins and a simulated appliance, clients that never rest, and
//! a nemesis that above all kills the leader in mid-migration.
//!
//! What is real: the program under test, its processes, its sockets and TLS, its ledger on disk, the namespaces, rules,
//! file systems and signals of the faults. What is simulated: the appliance (inside this process) and the nodes'
//! connections and mounts (the fake fabric, which notes each change with the machine's clock).
//!
//! Life of a run: `lab` starts everything; `clients` use it and `nemesis` strikes while `watch` and `ledger` look;
//! then everything is healed, the clients end, `finish` waits for convergence and reads all once more; what was
//! recorded is judged and reported.

mod appliance;
mod clients;
mod clock;
mod disk;
mod doors;
mod finish;
mod lab;
mod ledger;
mod nemesis;
mod network;
mod phases;
mod recorder;
mod report;
mod sanity;
mod verdict;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rds_csi::termination;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use lab::{Abilities, Lab};
use nemesis::{ALL, Kind, Nemesis, Plan};
use report::Totals;

pub use sanity::{AccessType, SanityArguments, sanity};
pub use verdict::{JudgeArguments, judge};

/// How often a run says how it goes.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long clients may take to end what they do, once everything is healed, in seconds.
const CLIENTS_LIMIT_S: u64 = 130;
/// One round of a soak: then everything is healed, judged, and begun anew.
const ROUND: Duration = Duration::from_secs(240);
/// How many leaders are to be killed in one round.
const ROUND_KILLS: usize = 50;

/// Where the controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// Each in a network namespace of its own; root.
    Namespaces,
    /// All on the loopback interface; the network is not cut.
    Loopback,
}

/// What every run with real processes is told.
#[derive(Debug, Clone, Args)]
pub struct ProcessArguments {
    /// The program under test [default: the rds-csi beside this program]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Where the controllers are [default: namespaces for root, else loopback]
    #[arg(long, value_enum)]
    network: Option<Place>,
}

/// `chaos run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    processes: ProcessArguments,
    /// How long faults are made
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Fewer leaders killed in mid-migration fail the run
    #[arg(long, default_value_t = 30)]
    min_kills: usize,
    /// Chooses faults and clients' ways; drawn and printed without it. Real processes never repeat exactly
    #[arg(long)]
    seed: Option<u64>,
    /// Makes this fault alone, and others that are named like it; leaders are killed only if that is named
    #[arg(long = "fault", value_name = "NAME", value_parser = PossibleValuesParser::new(fault_names()))]
    faults: Vec<String>,
    /// How long clients may take to end what they do once everything is healed, in seconds
    #[arg(long, default_value_t = CLIENTS_LIMIT_S)]
    patience: u64,
    /// Writes what was recorded to this file, as JSON; of a run that failed it is kept anyway
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// `chaos soak`.
#[derive(Debug, Args)]
pub struct SoakArguments {
    #[command(flatten)]
    processes: ProcessArguments,
    /// Goes on until so many leaders were killed in mid-migration
    #[arg(long, default_value_t = 1_000)]
    kills: usize,
}

impl ProcessArguments {
    fn program(&self) -> Result<PathBuf> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .context("cannot find this program's own file")?
                .with_file_name("rds-csi"),
        };
        ensure!(program.is_file(), "{} is missing: cargo build --package rds-csi", program.display());
        program.canonicalize().context("cannot find the program")
    }

    fn abilities(&self, program: &Path) -> Result<Abilities> {
        let is_root = rustix::process::geteuid().is_root();
        let namespaced = match self.network {
            Some(place) => place == Place::Namespaces,
            None => is_root,
        };
        ensure!(is_root || !namespaced, "--network namespaces: needs root");
        let abilities = Abilities::of(program, namespaced)?;
        let said = [
            ("failpoints", abilities.failpoints),
            ("network", abilities.network),
            ("disks", abilities.disks),
            ("wall clocks", abilities.clocks),
        ];
        for (what, reason) in said.into_iter().filter_map(|(what, can)| Some((what, can.err()?))) {
            println!("{what}: skipped, {reason}");
        }
        Ok(abilities)
    }
}

/// The faults that there are, as tables name them.
pub fn fault_names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|kind| kind.name())
}

/// Those of these names, or all; an error if one of those that are named cannot be here.
fn kinds_of(names: &[String], abilities: &Abilities) -> Result<Vec<Kind>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let one = |name: &String| {
        let kind = Kind::named(name).with_context(|| format!("there is no fault {name}"))?;
        match kind.needs(abilities) {
            Ok(()) => Ok(kind),
            Err(reason) => bail!("--fault {name:?} cannot be made: {reason}"),
        }
    };
    names.iter().map(one).collect()
}

/// Runs once; an error if anything is broken, or too few leaders were killed.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let program = arguments.processes.program()?;
    let abilities = arguments.processes.abilities(&program)?;
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random());
    let kinds = kinds_of(&arguments.faults, &abilities)?;
    let plan = Plan {
        duration: Duration::from_secs(arguments.seconds),
        kills: arguments.min_kills,
        kinds,
        patience: Duration::from_secs(arguments.patience),
    };
    let mut totals = Totals::default();
    until_signal(round(&program, abilities, seed, &plan, &mut totals, arguments.history.as_deref())).await?;
    totals.print();
    verdict_of(&totals, arguments.min_kills)
}

/// Runs round after round, each on a new cluster, until enough leaders were killed.
pub async fn soak(arguments: SoakArguments) -> Result<()> {
    let program = arguments.processes.program()?;
    let abilities = arguments.processes.abilities(&program)?;
    let patience = Duration::from_secs(CLIENTS_LIMIT_S);
    let plan = Plan { duration: ROUND, kills: ROUND_KILLS, kinds: ALL.to_vec(), patience };
    let mut totals = Totals::default();
    while totals.kills_in_migration < arguments.kills {
        until_signal(round(&program, abilities.clone(), rand::rng().random(), &plan, &mut totals, None))
            .await?;
        println!(
            "soak: {} of {} leaders killed in mid-migration, {} s",
            totals.kills_in_migration,
            arguments.kills,
            totals.ran.as_secs()
        );
        if !totals.troubles.is_empty() || !totals.violations.is_empty() {
            break;
        }
    }
    totals.print();
    let never = totals.never_exercised();
    ensure!(never.is_empty(), "never hit a migration: {}", never.join(", "));
    verdict_of(&totals, arguments.kills)
}

/// Does the work, unless a signal ends it: what is dropped then takes its processes, mounts and namespaces with it.
async fn until_signal<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let stop = termination::on_signal()?;
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => bail!("interrupted"),
    }
}

fn verdict_of(totals: &Totals, kills: usize) -> Result<()> {
    ensure!(totals.violations.is_empty(), "{} violations", totals.violations.len());
    ensure!(totals.troubles.is_empty(), "{} troubles", totals.troubles.len());
    ensure!(
        totals.kills_in_migration >= kills,
        "only {} of {kills} leaders were killed in mid-migration",
        totals.kills_in_migration
    );
    Ok(())
}

/// One cluster from its start to the verdict on it.
async fn round(
    program: &Path,
    abilities: Abilities,
    seed: u64,
    plan: &Plan,
    totals: &mut Totals,
    history_file: Option<&Path>,
) -> Result<()> {
    println!("seed {seed}, {} s", plan.duration.as_secs());
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let lab = phases::within("starting", phases::START_LIMIT, Lab::start(program, abilities)).await?;
    let lab = Arc::new(lab);
    let mut watchers = watchers(&lab);
    ensure!(lab.watch.leader_after(0, Duration::from_secs(10)).await.is_some(), "no controller leads");
    let stop = CancellationToken::new();
    let mut clients = clients::start(&lab, &mut random, &stop);
    let mut nemesis = Nemesis::new(lab.clone(), random);
    let raged = tokio::select! {
        raged = phases::within("a fault", plan.duration + phases::STRIKE_LIMIT, nemesis.rage(plan)) => raged,
        never = progress(&lab) => match never {},
    };
    if let Err(error) = raged {
        lab.recorder.trouble(format!("a fault could not be made: {error:#}"));
    }
    lab.heal()?;
    stop.cancel();
    let ended = timeout(plan.patience, async {
        while let Some(ended) = clients.join_next().await {
            if let Err(error) = ended {
                lab.recorder.trouble(format!("a client died: {error}"));
            }
        }
    });
    if ended.await.is_err() {
        let limit = plan.patience.as_secs();
        lab.recorder.trouble(format!("clients still wait {limit} s after everything was healed"));
        clients.shutdown().await;
    }
    let convergence = finish::converge(&lab).await;
    println!("converged after {} ms", convergence.as_millis());
    for panic in lab.panics() {
        lab.recorder.trouble(panic);
    }
    let history = phases::within("the final reading", phases::READING_LIMIT, finish::history(&lab)).await?;
    let history = Arc::new(history);
    totals.ran += began.elapsed();
    totals.add(&history, &nemesis.skipped);
    let violations = phases::judge(&history).await.unwrap_or_else(|error| {
        lab.recorder.trouble(format!("no verdict: {error:#}"));
        Vec::new()
    });
    let troubles = lab.recorder.troubles();
    let has_failed = !troubles.is_empty() || !violations.is_empty();
    totals.troubles.extend(troubles);
    totals.violations.extend(violations);
    drop(nemesis);
    let ended = async {
        watchers.shutdown().await;
        Ok(())
    };
    phases::within("ending", phases::END_LIMIT, ended).await?;
    let mut lab = Arc::into_inner(lab).context("somebody still uses what the run is made of")?;
    if has_failed {
        let directory = lab.keep_directory();
        write_history(&history, &directory.join("history.json"))?;
        println!("seed {seed} failed; its logs and its history: {}", directory.display());
    }
    if let Some(file) = history_file {
        write_history(&history, file)?;
    }
    Ok(())
}

fn write_history(history: &crate::history::History, file: &Path) -> Result<()> {
    let text = serde_json::to_string(history).context("cannot write the history")?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Those who only look. They end when they are dropped.
fn watchers(lab: &Arc<Lab>) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    let mut watch = |ended: std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>, lab: Arc<Lab>| {
        watchers.spawn(async move {
            if let Err(error) = ended.await {
                lab.recorder.trouble(format!("a watcher ended: {error:#}"));
            }
        });
    };
    for name in lab.doors.controllers() {
        let (one, other) = (lab.clone(), name.clone());
        watch(Box::pin(async move { watch::statuses(&one, &other).await }), lab.clone());
        let one = lab.clone();
        watch(Box::pin(async move { watch::votes(&one, &name).await }), lab.clone());
    }
    let one = lab.clone();
    watch(Box::pin(async move { ledger::follow(&one).await }), lab.clone());
    watchers
}

async fn progress(lab: &Lab) -> std::convert::Infallible {
    let mut ticks = interval(PROGRESS);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (operations, faults) = lab.recorder.counts();
        let kills = lab.recorder.hit_in_migration(nemesis::is_kill_of_leader);
        let leader = lab.watch.leader();
        let leads =
            leader.as_ref().map_or("nobody".to_owned(), |one| format!("{} in term {}", one.name, one.term));
        let migrations = leader.map_or(0, |one| one.migrations);
        println!(
            "{:>4} s: {operations} operations, {faults} faults, {kills} leaders killed in mid-migration, {} \
             troubles; {leads} leads, {migrations} migrations; {}",
            lab.recorder.now() / 1_000_000,
            lab.recorder.troubles().len(),
            lab.recorder.present_fault(),
        );
    }
}

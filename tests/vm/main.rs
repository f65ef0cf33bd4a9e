//! The driver on real NVMe/TCP, in virtual machines with stock kernels ([`tests::vm`]).
//!
//! One lab is booted, and the cases follow one another on it. Each has volumes of its own; what a failed one leaves
//! behind does not stop the next. The run fails if a case failed or has no result, if a machine's console or a
//! program's log shows an alarm, or if a machine or program is gone that no case ended. At its end it prints how long
//! staging and unstaging took, step by step.
//!
//! `cargo test -p tests --test vm -- grow reboot` runs only the cases whose names have one of these words in them,
//! `-- --list` names them all.

mod cases;
mod durations;
mod holder;
mod volume;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use node::Step;
use tests::vm::{Artifacts, VmLab};
use tokio::time::timeout;

use cases::Case;
use durations::Durations;

/// How long a case may take, in seconds. The longest takes about 50.
const CASE_LIMIT_S: u64 = 300;

/// How long all of it may take, in seconds: it ends, and its machines with it, whatever hangs.
const RUN_LIMIT_S: u64 = 3_600;

/// Steps of which a run of all cases has to have durations.
const MEASURED: &[Step] = &[Step::Connected, Step::Probed, Step::Formatted, Step::Mounted];

#[tokio::main]
async fn main() -> ExitCode {
    let (flags, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with('-'));
    // The other flags are those of cargo's own harness, and mean nothing here.
    if flags.iter().any(|flag| flag == "--list") {
        Case::ALL.iter().for_each(|case| println!("{}: test", case.name()));
        return ExitCode::SUCCESS;
    }
    let run = timeout(Duration::from_secs(RUN_LIMIT_S), run(&words)).await;
    // In the harness' own form, which tests/all counts.
    match run.unwrap_or_else(|_| Err(anyhow!("it takes more than {RUN_LIMIT_S} s"))) {
        Ok(passed) => {
            println!("test result: ok. {passed} passed; 0 failed; 0 ignored");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("test result: FAILED. {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases that `words` choose; how many passed, if all of them did and nothing else was wrong.
async fn run(words: &[String]) -> Result<usize> {
    let chosen: Vec<Case> = Case::ALL.into_iter().filter(|case| case.is_chosen(words)).collect();
    ensure!(!chosen.is_empty(), "no case has one of {words:?} in its name; --list names them all");
    let started = Instant::now();
    let artifacts = Artifacts::find()?;
    println!("vm: {}", artifacts.versions()?);
    let mut lab = VmLab::start(artifacts).await.context("start the lab")?;
    println!("vm: the lab is up after {:.1} s; {} cases", started.elapsed().as_secs_f64(), chosen.len());
    let mut durations = Durations::default();
    let (mut failures, mut has_failed) = (0, false);
    for case in &chosen {
        has_failed = !passes(*case, &mut lab, has_failed).await;
        failures += usize::from(has_failed);
        if let Err(error) = durations.look(&lab).await {
            println!("vm: no durations after {}: {error:#}", case.name());
        }
    }
    durations.print();
    println!("vm: {} cases in {:.1} s", chosen.len(), started.elapsed().as_secs_f64());
    let alarms = lab.alarms().len();
    ensure!(
        failures == 0 && alarms == 0,
        "{} passed; {failures} failed; 0 ignored; {alarms} alarms",
        chosen.len() - failures
    );
    if chosen.len() == Case::ALL.len() {
        durations.expect(MEASURED)?;
    }
    Ok(chosen.len())
}

/// Tells one case on machines and programs that all run, and looks for alarms; whether it passed.
async fn passes(case: Case, lab: &mut VmLab, last_has_failed: bool) -> bool {
    let (begun, alarms) = (Instant::now(), lab.alarms().len());
    let told = async {
        lab.mend(last_has_failed).await.context("before the case")?;
        case.tell(lab).await
    };
    let told = timeout(Duration::from_secs(CASE_LIMIT_S), told)
        .await
        .unwrap_or_else(|_| Err(anyhow!("it takes more than {CASE_LIMIT_S} s")));
    let took = begun.elapsed().as_secs_f64();
    match &told {
        Ok(()) => println!("PASS {took:6.1} s  {}", case.name()),
        Err(error) => {
            println!("FAIL {took:6.1} s  {}: {error:#}", case.name());
            lab.print_logs().await;
        }
    }
    lab.look_for_alarms(told.is_err()).await;
    for alarm in lab.alarms().iter().skip(alarms) {
        println!("ALARM after {}: {alarm}", case.name());
    }
    told.is_ok()
}

//! The driver on real NVMe/TCP, in virtual machines with stock kernels ([`tests::vm`]).
//!
//! One lab is booted, and the cases follow one another on it. Each has volumes of its own; what a failed one leaves
//! behind does not stop the next. The run fails if a case failed or has no result, or if a machine's console or a
//! program's log shows an alarm. At its end it prints how long staging and unstaging took, step by step.
//!
//! `cargo test -p tests --test vm -- grow reboot` runs only the cases whose names have one of these words in them.

mod cases;
mod durations;
mod volume;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::vm::VmLab;
use tokio::time::timeout;

use cases::Case;
use durations::Durations;

/// How long a case may take, in seconds.
const CASE_LIMIT_S: u64 = 240;

#[tokio::main]
async fn main() -> ExitCode {
    // Flags are those of cargo's own harness, and mean nothing here.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen: Vec<Case> = Case::ALL.iter().copied().filter(|case| case.is_chosen(&words)).collect();
    match run(&chosen).await {
        Ok(0) => {
            // In the harness' own form, which tests/all counts.
            println!("test result: ok. {} passed; 0 failed; 0 ignored", chosen.len());
            ExitCode::SUCCESS
        }
        Ok(failed) => {
            println!("test result: FAILED. {} passed; {failed} failed; 0 ignored", chosen.len() - failed);
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("test result: FAILED. {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases; how many failed.
async fn run(chosen: &[Case]) -> Result<usize> {
    let started = Instant::now();
    let mut lab = VmLab::start().await.context("start the lab")?;
    println!("vm: the lab is up after {:.1} s; {} cases", started.elapsed().as_secs_f64(), chosen.len());
    let mut failed = 0;
    let mut durations = Durations::default();
    for case in chosen {
        let begun = Instant::now();
        let told = tell(*case, &mut lab).await;
        let took = begun.elapsed().as_secs_f64();
        match told {
            Ok(()) => println!("PASS {took:6.1} s  {}", case.name()),
            Err(error) => {
                failed += 1;
                println!("FAIL {took:6.1} s  {}: {error:#}", case.name());
                lab.print_logs().await;
            }
        }
        if let Err(error) = durations.look(&lab).await {
            println!("vm: no durations after {}: {error:#}", case.name());
        }
    }
    let alarms = lab.alarms().await;
    for alarm in &alarms {
        println!("ALARM {alarm}");
    }
    durations.print();
    println!("vm: {} cases in {:.1} s", chosen.len(), started.elapsed().as_secs_f64());
    anyhow::ensure!(alarms.is_empty(), "{failed} cases failed, {} alarms", alarms.len());
    Ok(failed)
}

/// Tells one case on machines and programs that all run.
async fn tell(case: Case, lab: &mut VmLab) -> Result<()> {
    let told = async {
        lab.mend().await.context("before the case")?;
        case.tell(lab).await
    };
    timeout(Duration::from_secs(CASE_LIMIT_S), told)
        .await
        .with_context(|| format!("it takes more than {CASE_LIMIT_S} s"))?
}

//! The chaos suite's command line.

use std::process::ExitCode;

use anyhow::{Context, Result};
use chaos::{bugs, processes};
use clap::Parser;

/// Faults while migrations run, and what must be true whatever happens
#[derive(Debug, Parser)]
#[command(name = "chaos")]
enum Chaos {
    /// Real processes for some minutes, the leader killed in mid-migration every few seconds
    Run(processes::RunArguments),
    /// The same, round after round, until so many leaders were killed in mid-migration
    Soak(processes::SoakArguments),
    /// What the invariants say of a run that was kept
    Judge(processes::JudgeArguments),
    /// csi-sanity while the leader is killed every few seconds
    Sanity(processes::SanityArguments),
    /// Plants each bug and shows what finds it
    Bugs(bugs::Arguments),
}

fn main() -> ExitCode {
    match run(Chaos::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Chaos) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let done = match command {
            Chaos::Bugs(arguments) => return bugs::run(arguments).await,
            Chaos::Run(arguments) => processes::run(arguments).await,
            Chaos::Soak(arguments) => processes::soak(arguments).await,
            Chaos::Judge(arguments) => processes::judge(&arguments),
            Chaos::Sanity(arguments) => processes::sanity(arguments).await,
        };
        done.map(|()| ExitCode::SUCCESS)
    })
}

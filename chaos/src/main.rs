//! The chaos suite's command line.

use std::process::ExitCode;

use anyhow::{Context, Result};
use chaos::{bugs, processes, sim};
use clap::Parser;
use tokio::runtime::Runtime;

/// Faults while migrations run, and what must be true whatever happens
#[derive(Debug, Parser)]
#[command(name = "chaos")]
enum Chaos {
    /// Seeds in the simulator: replicas, nodes and an appliance in one thread, in simulated time
    Sim(sim::SimArguments),
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
    // The simulator has a runtime of its own for each seed.
    let runtime = || Runtime::new().context("cannot start the runtime");
    match command {
        Chaos::Sim(arguments) => arguments.run()?,
        Chaos::Run(arguments) => runtime()?.block_on(processes::run(arguments))?,
        Chaos::Soak(arguments) => runtime()?.block_on(processes::soak(arguments))?,
        Chaos::Judge(arguments) => processes::judge(&arguments)?,
        Chaos::Sanity(arguments) => runtime()?.block_on(processes::sanity(arguments))?,
        Chaos::Bugs(arguments) => return runtime()?.block_on(bugs::run(arguments)),
    }
    Ok(ExitCode::SUCCESS)
}

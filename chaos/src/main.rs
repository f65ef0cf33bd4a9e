//! The chaos suite's command line.

use std::process::ExitCode;

use anyhow::Result;
use chaos::bugs;
use clap::Parser;

/// Faults while migrations run, and what must be true whatever happens
#[derive(Debug, Parser)]
enum Chaos {
    /// Plants each bug and shows what finds it
    Bugs(bugs::Arguments),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Chaos::parse() {
        Chaos::Bugs(arguments) => bugs::run(arguments).await,
    }
}

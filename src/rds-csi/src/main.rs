//! The binary: parses, starts logs and the runtime, hands over, and turns the outcome into an exit status.

use std::process::ExitCode;

use clap::Parser;
use rds_csi::{
    Arguments, Failure, Program, bench, cluster_certificates, ctl, dev, logging, services, termination,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("rds-csi: {line}");
            }
            ExitCode::from(failure.exit_status())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let is_for_people = matches!(
        arguments.program,
        Program::Dev(_) | Program::Ctl(_) | Program::HandOver(_) | Program::Certificates(_)
    );
    logging::start(&arguments.logging, if is_for_people { "warn" } else { "info" })
        .map_err(|mistake| Failure::Usage(vec![mistake]))?;
    // It fails only if a provider is there already, and then TLS works too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::new(error).context("cannot start the runtime"))?;
    runtime.block_on(dispatch(arguments))
}

async fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    match arguments.program {
        Program::Controller(service) => services::controller(&service).await,
        Program::Node(service) => services::node(&service).await,
        Program::Simulator(service) => services::simulator(&service).await,
        Program::Dev(dev) => dev::run(dev, arguments.logging.log.as_deref(), termination::on_signal()?).await,
        Program::Ctl(ctl) => ctl::run(ctl).await,
        Program::HandOver(replica) => services::hand_over(&replica).await,
        Program::Certificates(wanted) => cluster_certificates::run(&wanted).await,
        Program::Bench(bench) => bench::run(bench, termination::on_signal()?).await,
    }
}

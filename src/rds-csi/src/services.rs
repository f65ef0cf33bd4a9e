//! The long-running programs: settings in, run until a signal, out.

mod simulator;

use std::fs;
use std::path::Path;

use anyhow::Context;
use controller::ControllerConfig;
use node::NodeConfig;
use routeros_simulator::Simulator;

use crate::arguments::ServiceArguments;
use crate::failure::Failure;
use crate::open_files;
use crate::termination;

pub(crate) use simulator::{SimulatedLatencies, SimulatedPool, SimulatorSettings};

/// Runs a controller replica until it is told to end.
pub async fn controller(arguments: &ServiceArguments) -> Result<(), Failure> {
    let config = settings(&arguments.config, ControllerConfig::parse)?;
    let stop = termination(arguments)?;
    match open_files::allow_all() {
        Ok(limit) => tracing::info!(limit, "open files, one for each node's session"),
        Err(error) => tracing::warn!("{error:#}: nodes beyond it have no session"),
    }
    controller::run(config, stop).await.context("the controller ended")?;
    Ok(())
}

/// Runs the node plugin until it is told to end.
pub async fn node(arguments: &ServiceArguments) -> Result<(), Failure> {
    let config = settings(&arguments.config, node_config)?;
    let stop = termination(arguments)?;
    node::run(config, stop).await.context("the node plugin ended")?;
    Ok(())
}

/// Runs the simulated appliance until it is told to end.
pub async fn simulator(arguments: &ServiceArguments) -> Result<(), Failure> {
    let config = settings(&arguments.config, SimulatorSettings::parse)?.into_config();
    let stop = termination(arguments)?;
    let simulator = Simulator::start(config).await.context("cannot start the simulated appliance")?;
    tracing::info!(address = %simulator.address(), "the simulated appliance serves RouterOS over SSH");
    stop.cancelled().await;
    simulator.shutdown();
    Ok(())
}

fn node_config(text: &str) -> Result<NodeConfig, Vec<String>> {
    let config: NodeConfig = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
    let mistakes = config.validate();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

fn termination(arguments: &ServiceArguments) -> Result<tokio_util::sync::CancellationToken, Failure> {
    if arguments.exit_with_parent {
        termination::with_parent();
    }
    Ok(termination::on_signal()?)
}

/// Reads a settings file; each mistake comes with the file's name.
fn settings<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, Vec<String>>) -> Result<T, Failure> {
    let named = |mistake: String| format!("{}: {mistake}", path.display());
    let text = fs::read_to_string(path).map_err(|error| Failure::Usage(vec![named(error.to_string())]))?;
    parse(&text).map_err(|mistakes| Failure::Usage(mistakes.into_iter().map(named).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_under_the_files_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("simulator.toml");
        let missing = settings(&path, SimulatorSettings::parse).unwrap_err();
        assert!(matches!(&missing, Failure::Usage(mistakes) if mistakes[0].contains("simulator.toml")));

        let text = "listen = '127.0.0.1:0'\nauthorized_keys = []\npools = []\n\
                    exporter = { kind = 'nvmet', listen = '0.0.0.0' }\n";
        fs::write(&path, text).unwrap();
        let Failure::Usage(mistakes) = settings(&path, SimulatorSettings::parse).unwrap_err() else {
            panic!("not a usage failure");
        };
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes.iter().all(|mistake| mistake.contains("simulator.toml")), "{mistakes:?}");
    }
}

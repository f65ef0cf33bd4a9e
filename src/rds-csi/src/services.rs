//! The long-running programs: settings in, run until a signal, out.

mod simulator;

use std::fs;
use std::path::Path;

use anyhow::Context;
use controller::ControllerConfig;
use node::NodeConfig;
use routeros_simulator::Simulator;

use crate::arguments::{ControllerArguments, NodeArguments, ReplicaArguments, ServiceArguments};
use crate::failure::Failure;
use crate::open_files;
use crate::termination;

pub(crate) use simulator::{SimulatedLatencies, SimulatedPool, SimulatorSettings};

/// Runs a controller replica until it is told to end.
pub async fn controller(arguments: &ControllerArguments) -> Result<(), Failure> {
    let config = controller_config(&arguments.replica)?;
    let stop = termination(arguments.exit_with_parent)?;
    match open_files::allow_all() {
        Ok(limit) => tracing::info!(limit, "open files, one for each node's session"),
        Err(error) => tracing::warn!("{error:#}: nodes beyond it have no session"),
    }
    controller::run(config, stop).await.context("the controller ended")?;
    Ok(())
}

/// Runs the node plugin until it is told to end.
pub async fn node(arguments: &NodeArguments) -> Result<(), Failure> {
    let node_id = arguments.node_id.as_deref();
    let config = settings(&arguments.service.config, |text| node_config(text, node_id))?;
    let stop = termination(arguments.service.exit_with_parent)?;
    node::run(config, stop).await.context("the node plugin ended")?;
    Ok(())
}

/// Runs the simulated appliance until it is told to end.
pub async fn simulator(arguments: &ServiceArguments) -> Result<(), Failure> {
    let config = settings(&arguments.config, SimulatorSettings::parse)?.into_config();
    let stop = termination(arguments.exit_with_parent)?;
    let simulator = Simulator::start(config).await.context("cannot start the simulated appliance")?;
    tracing::info!(address = %simulator.address(), "the simulated appliance serves RouterOS over SSH");
    stop.cancelled().await;
    simulator.shutdown();
    Ok(())
}

/// Has a running controller give its leadership away.
pub async fn hand_over(arguments: &ReplicaArguments) -> Result<(), Failure> {
    let config = controller_config(arguments)?;
    let done = controller::hand_over(&config).await;
    done.map_err(|why| anyhow::anyhow!("the leadership was not handed over: {why}").into())
}

fn controller_config(arguments: &ReplicaArguments) -> Result<ControllerConfig, Failure> {
    settings(&arguments.config, |text| ControllerConfig::parse_for(text, arguments.name.as_deref()))
}

fn node_config(text: &str, node_id: Option<&str>) -> Result<NodeConfig, Vec<String>> {
    let mut config: NodeConfig = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
    if let Some(node_id) = node_id {
        node_id.clone_into(&mut config.node_id);
    }
    let mistakes = config.validate();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

fn termination(exit_with_parent: bool) -> Result<tokio_util::sync::CancellationToken, Failure> {
    if exit_with_parent {
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

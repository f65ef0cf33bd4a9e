//! Replicas that know each other by names, as pods do: names that mean nothing yet when they start.
//!
//! Each process has an `/etc/hosts` of its own, in a mount namespace of its own; this needs root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rds_csi::dev::{Cluster, Surroundings};
use tests::Lab;
use tests::requests::eventually;

use crate::sessions::wait_for_metric;

/// Who knows nobody but itself.
const HOSTS: &str = "127.0.0.1 localhost\n";
/// How long the replicas look for each other in vain: several rounds of asking.
const IN_VAIN: Duration = Duration::from_secs(3);
/// What a process may say in that time that is more than information, and does not end in repeating itself.
const LINES_IN_VAIN: usize = 6;

/// A process that has `hosts` for its `/etc/hosts`.
fn with_hosts(hosts: &Path) -> Surroundings {
    let script = format!("mount --bind '{}' /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    let launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script];
    Surroundings { launcher: launcher.map(Into::into).to_vec(), ..Surroundings::default() }
}

fn name_of(controller: &str) -> String {
    format!("{controller}.rds-csi.test")
}

/// The same settings with names in place of the controllers' `addresses`; a controller listens everywhere, as in a pod.
fn by_name(lab: &Lab, process: &str, addresses: &[(String, String)]) -> Result<()> {
    let path = lab.config_path(process);
    let mut text = fs::read_to_string(&path)?;
    for (controller, address) in addresses {
        let (_, port) = address.rsplit_once(':').context("no port")?;
        let (listen, everywhere) =
            (format!("listen = \"{address}\""), format!("listen = \"0.0.0.0:{port}\""));
        text = text.replace(&listen, &everywhere);
        text = text.replace(&format!("\"{address}\""), &format!("\"{}:{port}\"", name_of(controller)));
    }
    Ok(fs::write(path, text)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_come_to_mean_something_later() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, HOSTS)?;
    let processes = ["controller-0", "controller-1", "controller-2", "node-a"];
    let mut builder = Cluster::builder().nodes(1);
    for process in processes {
        builder = builder.surroundings(process, with_hosts(&hosts));
    }
    Lab::tell_on(builder, async |lab| {
        for process in processes {
            lab.terminate(process).await?;
            fs::write(lab.log_path(process), "")?;
        }
        let address = |name: String| Ok((name.clone(), lab.address(&name)?));
        let addresses = lab.controllers().into_iter().map(address).collect::<Result<Vec<_>>>()?;
        for process in processes {
            by_name(lab, process, &addresses)?;
        }
        for controller in lab.controllers() {
            lab.wipe(&controller)?;
        }
        for process in processes {
            lab.start(process)?;
        }
        tokio::time::sleep(IN_VAIN).await;
        for process in processes {
            ensure!(lab.pid(process).is_some(), "{process} gave up");
            let log = fs::read_to_string(lab.log_path(process))?;
            let loud: Vec<_> =
                log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
            // A node asks for longer before it says that nobody answers.
            let least = usize::from(lab.controllers().iter().any(|name| name == process));
            let said = loud.join("\n");
            ensure!(
                (least..=LINES_IN_VAIN).contains(&loud.len()),
                "{process} said {} lines: {said}",
                loud.len()
            );
        }
        let names: String =
            lab.controllers().iter().map(|name| format!("127.0.0.1 {}\n", name_of(name))).collect();
        fs::write(&hosts, format!("{HOSTS}{names}"))?;
        for process in processes {
            lab.wait_until_ready(process).await?;
        }
        wait_for_metric(lab, "node-a", "rds_csi_node_session_connected 1").await?;
        eventually("all have applied the same", async || lab.expect_equal_replicas().await).await
    })
    .await
}

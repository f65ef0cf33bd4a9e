//! csi-sanity, on the host, against the node plugin in a machine: its paths are made and looked at in the guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::sanity::{self, PathCommands, Sanity};
use tests::tools;
use tests::vm::{Guest, NODES, NodeOptions, VmLab};

/// How many volumes the node takes: small, since csi-sanity fills it up.
const MAX_VOLUMES: u32 = 4;

/// How long one run may take, in seconds: with the plugin's restarts, which have a limit of their own, less than a case
/// may. It takes 30 to 50.
const RUN_LIMIT_S: u64 = 150;

/// Where volumes are staged and published in the guest.
const PATHS: &str = "/var/lib/kubelet/sanity";

/// Prints what kind of thing is at a path, in csi-sanity's words.
const CHECK: &str = r#"
    if [ -d "$0" ]; then echo directory
    elif [ -f "$0" ]; then echo file
    elif [ -e "$0" ]; then echo other
    else echo not_found
    fi"#;

/// Runs it for one access type. Nothing of it may be left on the node or in the target.
pub(super) async fn run(lab: &mut VmLab, access_type: &'static str) -> Result<()> {
    let node = NODES[0];
    let program = tools::csi_sanity()?;
    lab.restart_node(node, &NodeOptions { settings: format!("max_volumes = {MAX_VOLUMES}") }).await?;
    let guest = lab.guest(node)?;
    guest.run(&["mkdir", "-p", PATHS]).await?;
    let before = traces(lab, &guest).await?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let controller = lab.cluster().controllers().into_iter().next().context("there is no controller")?;
    let cluster = lab.cluster();
    let (identity, csi) = (cluster.csi_identity(&controller)?, cluster.csi_controller(&controller)?);
    let controller = format!("unix://{}", cluster.csi_socket(&controller).display());
    let advertised = sanity::advertised(identity, csi, lab.csi_node(node)?).await?;
    let report = Sanity {
        program,
        node: format!("dns:///{}", lab.csi_address(node)?),
        controller,
        access_type,
        paths: PATHS.into(),
        directory: directory.path().to_owned(),
        path_commands: Some(path_commands(directory.path(), &lab.artifacts().program("vm-agent"), &guest)?),
        limit_s: RUN_LIMIT_S,
    }
    .run()
    .await?;
    println!(
        "csi-sanity, {access_type} on NVMe/TCP: {} passed, {} failed, skipped: {:?}",
        report.passed.len(),
        report.failed.len(),
        report.skipped
    );
    report.expect_good(&advertised)?;
    let after = traces(lab, &guest).await?;
    ensure!(before == after, "left behind: before\n{before}\nafter\n{after}");
    lab.restart_node(node, &NodeOptions::default()).await
}

/// What a volume leaves if it is not taken away in full.
async fn traces(lab: &VmLab, guest: &Guest) -> Result<String> {
    let node =
        guest.sh(&format!("ls /sys/class/nvme; ls {PATHS}; grep {PATHS} /proc/mounts || true")).await?;
    let target = lab.target().sh("ls /sys/kernel/config/nvmet/subsystems").await?;
    Ok(format!("node: {node}\ntarget: {target}"))
}

/// Programs that csi-sanity calls with a path: each has the agent do it in the guest.
fn path_commands(directory: &Path, agent: &Path, guest: &Guest) -> Result<PathCommands> {
    let command = |name: &str, script: &str| -> Result<PathBuf> {
        let path = directory.join(name);
        let ask = format!("exec '{}' ask {} sh -euc '{script}' \"$1\"", agent.display(), guest.agent());
        fs::write(&path, format!("#!/bin/sh\n{ask}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    };
    Ok(PathCommands {
        create: command("create", r#"mkdir "$0"; echo "$0""#)?,
        remove: command("remove", r#"rmdir "$0""#)?,
        check: command("check", CHECK)?,
    })
}

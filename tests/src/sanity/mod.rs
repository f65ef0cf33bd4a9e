//! csi-sanity: how it is run, and what its report says. No spec is skipped by us.

mod report;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::controller_service_capability::Type as ControllerCapability;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::node_service_capability::Type as NodeCapability;
use proto::csi::v1::plugin_capability::Type as PluginCapability;
use proto::csi::v1::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, NodeGetCapabilitiesRequest,
};
use tokio::process::Command;
use tokio::time::timeout;
use tonic::transport::Channel;

pub use report::{Capability, Report};

/// Size of csi-sanity's volumes, in bytes.
const VOLUME_BYTES: u64 = 64 << 20;

/// Size of its grown volumes, in bytes.
const EXPANDED_BYTES: u64 = 96 << 20;

/// One run of csi-sanity.
#[derive(Debug, Clone)]
pub struct Sanity {
    /// The program.
    pub program: PathBuf,
    /// The Node service, as gRPC addresses are written.
    pub node: String,
    /// The Controller service.
    pub controller: String,
    /// `mount` or `block`.
    pub access_type: &'static str,
    /// Where volumes are staged and published, on the node.
    pub paths: PathBuf,
    /// Where its report goes, on this machine.
    pub directory: PathBuf,
    /// How a path of a node that is not this machine is made, removed and looked at; each a program.
    pub path_commands: Option<PathCommands>,
    /// How long it may take, in seconds.
    pub limit_s: u64,
}

/// Programs that csi-sanity calls with a path on the node.
#[derive(Debug, Clone)]
pub struct PathCommands {
    /// Makes it, and prints it.
    pub create: PathBuf,
    /// Removes it.
    pub remove: PathBuf,
    /// Prints what it is: `file`, `directory`, `not_found` or `other`.
    pub check: PathBuf,
}

impl Sanity {
    /// Runs it to its end; what it printed is printed.
    pub async fn run(&self) -> Result<Report> {
        let report = self.directory.join("csi-sanity.json");
        let child = Command::new(&self.program)
            .args(self.arguments(&report))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("start csi-sanity")?;
        let output = timeout(Duration::from_secs(self.limit_s), child.wait_with_output())
            .await
            .with_context(|| format!("csi-sanity ran for more than {} s", self.limit_s))?
            .context("wait for csi-sanity")?;
        // The summary, and above it what failed and why.
        println!("{}", String::from_utf8_lossy(&output.stdout));
        let text = fs::read_to_string(&report)
            .with_context(|| format!("csi-sanity ({}) wrote no report", output.status))?;
        let report = Report::parse(&text)?;
        ensure!(
            output.status.success() == report.failed.is_empty(),
            "csi-sanity: {}, {:?}",
            output.status,
            report.failed
        );
        Ok(report)
    }

    fn arguments(&self, report: &Path) -> Vec<String> {
        let mut arguments =
            vec!["--csi.testnodevolumeattachlimit".to_owned(), "--ginkgo.no-color".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([format!("--{flag}"), value]);
        let shown = |path: &Path| path.display().to_string();
        add("csi.endpoint", self.node.clone());
        add("csi.controllerendpoint", self.controller.clone());
        add("csi.mountdir", shown(&self.paths.join("mount")));
        add("csi.stagingdir", shown(&self.paths.join("staging")));
        add("csi.testvolumeaccesstype", self.access_type.to_owned());
        add("csi.testvolumesize", VOLUME_BYTES.to_string());
        add("csi.testvolumeexpandsize", EXPANDED_BYTES.to_string());
        add("ginkgo.json-report", shown(report));
        if let Some(commands) = &self.path_commands {
            for kind in ["mount", "staging"] {
                add(&format!("csi.create{kind}pathcmd"), shown(&commands.create));
                add(&format!("csi.remove{kind}pathcmd"), shown(&commands.remove));
            }
            add("csi.checkpathcmd", shown(&commands.check));
        }
        arguments
    }
}

/// Every capability that the driver claims.
pub async fn advertised(
    mut identity: IdentityClient<Channel>,
    mut controller: ControllerClient<Channel>,
    mut node: NodeClient<Channel>,
) -> Result<BTreeSet<Capability>> {
    let mut found = BTreeSet::new();
    let plugin = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?;
    for capability in plugin.into_inner().capabilities {
        if let Some(PluginCapability::Service(service)) = capability.r#type {
            found.insert(Capability::Plugin(service.r#type));
        }
    }
    let request = ControllerGetCapabilitiesRequest {};
    for capability in controller.controller_get_capabilities(request).await?.into_inner().capabilities {
        if let Some(ControllerCapability::Rpc(rpc)) = capability.r#type {
            found.insert(Capability::Controller(rpc.r#type));
        }
    }
    for capability in
        node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?.into_inner().capabilities
    {
        if let Some(NodeCapability::Rpc(rpc)) = capability.r#type {
            found.insert(Capability::Node(rpc.r#type));
        }
    }
    ensure!(found.len() > 10, "the driver claims only {found:?}");
    Ok(found)
}

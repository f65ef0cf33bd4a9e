//! Everything that runs for one run of the stories, and questions that several of them ask.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rds_csi::http;
use routeros_simulator::generate_client_key;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::appliance::Appliance;
use tests::requests::eventually_within;
use tests::tools;

use crate::api::Api;
use crate::control_plane::ControlPlane;
use crate::kubelet::Kubelet;
use crate::network;
use crate::program::Program;

/// The namespace of the release, and the release's name.
pub(crate) const RELEASE: &str = "rds-csi";
/// The driver's name.
pub(crate) const DRIVER: &str = "rds.csi.srvlab.io";
/// The namespace of claims, pods and virtual machines.
pub(crate) const NAMESPACE: &str = "vms";
/// The nodes. Each has a controller replica as well.
pub(crate) const NODES: [&str; 3] = ["worker-a", "worker-b", "worker-c"];
/// The container of a controller's pod that is the driver.
pub(crate) const CONTROLLER: &str = "controller";
/// The appliance's SSH port.
pub(crate) const SSH_PORT: u16 = 2222;
/// The directory of volumes on the appliance.
pub(crate) const VOLUME_PATH: &str = "/storage-pool/kubernetes";
/// How long anything may take that sidecars and controllers try again and again, in milliseconds.
pub(crate) const PATIENCE_MS: u64 = 90_000;

/// The simulated pool's size, in bytes: 8 TiB.
const POOL_BYTES: u64 = 8 << 40;

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) api: Api,
    pub(crate) kubelet: Kubelet,
    pub(crate) control_plane: ControlPlane,
    simulator: Program,
    /// Where everything is kept.
    pub(crate) directory: PathBuf,
    /// Whether the chart is told a topology.
    pub(crate) has_topology: bool,
    started: Instant,
    _temporary: TempDir,
}

impl Cluster {
    /// Starts Kubernetes and the simulated appliance; nothing is installed yet.
    pub(crate) async fn start(has_topology: bool) -> Result<Self> {
        let started = Instant::now();
        let temporary = tempfile::Builder::new().prefix("rds-k-").tempdir()?;
        let directory = temporary.path().to_owned();
        // Containers' users have to get through.
        fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let logs = directory.join("logs");
        fs::create_dir_all(&logs)?;
        network::make_bridge()?;
        let simulator = start_simulator(&directory, &logs)?;
        let control_plane = ControlPlane::start(&directory, &logs).await?;
        let api = control_plane.api.clone();
        let kubelet = Kubelet::new(api.clone(), control_plane.address, &directory, &logs, &names())?;
        Ok(Self {
            api,
            kubelet,
            control_plane,
            simulator,
            directory,
            has_topology,
            started,
            _temporary: temporary,
        })
    }

    /// Prints a line of the timeline.
    pub(crate) fn say(&self, line: &str) {
        println!("{:9.3} s  {line}", self.started.elapsed().as_secs_f64());
    }

    /// Where the programs log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The ends of all logs.
    pub(crate) fn log_ends(&self) -> String {
        let mut ends: Vec<_> = self.control_plane.programs.iter().map(Program::log_end).collect();
        ends.push(self.simulator.log_end());
        ends.extend(self.kubelet.log_ends());
        ends.join("\n")
    }

    /// What the simulated appliance holds.
    pub(crate) fn appliance(&self) -> Result<Appliance> {
        Appliance::read(&self.directory.join("appliance.json"))
    }

    /// The size in bytes that the appliance has of the volume; `None` if it does not have it.
    pub(crate) fn size_on_appliance(&self, volume: &str) -> Result<Option<u64>> {
        Ok(self.appliance()?.size_of(volume))
    }

    /// The names of the controllers' pods.
    pub(crate) fn controllers() -> Vec<String> {
        (0..NODES.len()).map(|index| format!("{RELEASE}-controller-{index}")).collect()
    }

    /// What `rds-csi ctl` prints of this, asked in a controller's pod that runs.
    pub(crate) async fn ctl(&self, pod: &str, words: &[&str]) -> Result<Value> {
        let mut line =
            vec!["/usr/local/bin/rds-csi", "ctl", "--config", "/etc/rds-csi/ctl.toml", "-o", "json"];
        line.extend(words);
        let text = self.kubelet.execute(pod, CONTROLLER, &line).await?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} printed {text}"))
    }

    /// The pod of the replica that leads.
    pub(crate) async fn leader(&self) -> Result<String> {
        self.eventually("the leader", async || {
            for pod in Self::controllers() {
                let Ok(text) = self.metrics(&pod).await else { continue };
                if text.lines().any(|line| line == "rds_csi_raft{fact=\"leader\"} 1") {
                    return Ok(pod);
                }
            }
            anyhow::bail!("no replica says that it leads")
        })
        .await
    }

    /// What a controller serves at `/metrics`.
    pub(crate) async fn metrics(&self, pod: &str) -> Result<String> {
        let address = format!("{}:9809", self.kubelet.address(pod)?);
        Ok(http::get(&address, "/metrics").await?.text())
    }

    /// Waits until `look` finds something.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        eventually_within(PATIENCE_MS, what, async || {
            self.tend()?;
            look().await
        })
        .await
    }

    /// Waits until a container's probe succeeds.
    pub(crate) async fn wait_for_probe(&self, pod: &str, container: &str, probe: &str) -> Result<()> {
        let what = format!("the {probe} of {container} in {pod}");
        self.eventually(&what, async || self.kubelet.probe(pod, container, probe).await).await
    }

    /// Restarts what ended by itself, and says so.
    fn tend(&self) -> Result<()> {
        self.kubelet.tend()?.iter().for_each(|line| self.say(line));
        Ok(())
    }

    /// The VolumeAttachment of the claim's volume to the node.
    pub(crate) async fn attachment(&self, volume: &str, node: &str) -> Result<Value> {
        let all = self.api.list("/apis/storage.k8s.io/v1/volumeattachments").await?;
        let of_both = |one: &Value| {
            one["spec"]["source"]["persistentVolumeName"] == volume && one["spec"]["nodeName"] == node
        };
        all.into_iter().find(of_both).with_context(|| format!("no VolumeAttachment of {volume} to {node}"))
    }

    /// Waits until the volume is attached to the node; the VolumeAttachment.
    pub(crate) async fn attached(&self, volume: &str, node: &str) -> Result<Value> {
        self.eventually(&format!("{volume} is attached to {node}"), async || {
            let found = self.attachment(volume, node).await?;
            ensure!(found["status"]["attached"] == true, "{}", found["status"]);
            Ok(found)
        })
        .await
    }

    /// Waits until the attachment to the node is refused with these words; the whole sentence.
    pub(crate) async fn refused(&self, volume: &str, node: &str, words: &[&str]) -> Result<String> {
        self.eventually(&format!("{volume} is refused on {node}, with {words:?}"), async || {
            let found = self.attachment(volume, node).await?;
            ensure!(found["status"]["attached"] != true, "attached");
            let message = found["status"]["attachError"]["message"].as_str().unwrap_or_default();
            ensure!(!message.is_empty() && words.iter().all(|word| message.contains(word)), "{message:?}");
            Ok(message.to_owned())
        })
        .await
    }

    /// Waits until there is no VolumeAttachment of the volume to the node.
    pub(crate) async fn detached(&self, volume: &str, node: &str) -> Result<()> {
        self.eventually(&format!("{volume} is detached from {node}"), async || {
            self.beat(node).await?;
            ensure!(self.attachment(volume, node).await.is_err(), "still there");
            Ok(())
        })
        .await
    }

    /// kubelet's report of its node: only from one that is newer than an attachment which was refused does the
    /// attach-detach controller learn that nothing is mounted there. kubelet sends one every 5 minutes or sooner.
    async fn beat(&self, node: &str) -> Result<()> {
        let now = format!("{:?}", self.started.elapsed());
        let report = json!({"metadata": {"annotations": {"heartbeat": now}}});
        self.api.patch(&format!("/api/v1/nodes/{node}"), &report).await.map(drop)
    }

    /// Makes a claim, waits until it is bound; the volume's name.
    pub(crate) async fn claim(&self, claim: &Value) -> Result<String> {
        let name = claim["metadata"]["name"].as_str().context("a claim without a name")?;
        self.api.create(claim, false).await?.accepted().with_context(|| format!("make the claim {name}"))?;
        self.bound(name).await
    }

    /// Waits until the claim is bound; the volume's name.
    pub(crate) async fn bound(&self, name: &str) -> Result<String> {
        self.eventually(&format!("the claim {name} is bound"), async || {
            let found = self.api.get(&format!("{}/{name}", path("persistentvolumeclaims"))).await?;
            ensure!(found["status"]["phase"] == "Bound", "{}", found["status"]);
            Ok(found["spec"]["volumeName"].as_str().context("no volume")?.to_owned())
        })
        .await
    }

    /// Deletes a claim that nobody uses, and waits until its volume is gone, from the appliance as well.
    pub(crate) async fn delete_claim(&self, claim: &str, volume: &str) -> Result<()> {
        self.api.delete(&format!("{}/{claim}", path("persistentvolumeclaims"))).await?;
        self.eventually(&format!("the volume of {claim} is gone"), async || {
            ensure!(
                self.api.is_gone(&format!("/api/v1/persistentvolumes/{volume}")).await?,
                "the PV is there"
            );
            ensure!(self.size_on_appliance(volume)?.is_none(), "it is on the appliance");
            Ok(())
        })
        .await
    }

    /// Waits until the claim has events of the driver with these reasons, whatever else it has.
    pub(crate) async fn events(&self, claim: &str, wanted: &[&str]) -> Result<()> {
        let path = format!("{}?fieldSelector=involvedObject.name={claim}", path("events"));
        self.eventually(&format!("{claim} has the events {wanted:?}"), async || {
            let events = self.api.list(&path).await?;
            let ours = events.iter().filter(|event| event["source"]["component"] == DRIVER);
            let reasons: Vec<_> = ours.filter_map(|event| event["reason"].as_str()).collect();
            ensure!(wanted.iter().all(|reason| reasons.contains(reason)), "{reasons:?}");
            Ok(())
        })
        .await
    }

    /// Runs a pod on a node, as far as the API server and its controllers see.
    pub(crate) async fn run_pod(&self, pod: &Value) -> Result<Value> {
        let made = self.api.create(pod, false).await?.accepted().context("make a pod")?;
        let name = made["metadata"]["name"].as_str().context("a pod without a name")?;
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let of_container = |container: &Value| {
            json!({"name": container["name"], "image": "none", "imageID": "none", "ready": true,
                   "restartCount": 0})
        };
        let status = json!({"status": {
            "phase": "Running",
            "containerStatuses": containers.map(of_container).collect::<Vec<_>>(),
        }});
        self.api.patch(&format!("{}/{name}/status", path("pods")), &status).await
    }

    /// Fails if anything ended by itself that has no reason to.
    pub(crate) fn expect_alive(&mut self) -> Result<()> {
        for program in self.control_plane.programs.iter_mut().chain([&mut self.simulator]) {
            let ended = program.ended()?;
            ensure!(ended.is_none(), "{} ended by itself: {ended:?}\n{}", program.name, program.log_end());
        }
        self.tend()
    }
}

/// The collection in the namespace of the virtual machines.
pub(crate) fn path(collection: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{collection}")
}

/// How long something took since `begun`, for the timeline.
pub(crate) fn took(begun: Instant) -> String {
    format!("{:.2} s", begun.elapsed().as_secs_f64())
}

/// What the cluster's DNS would say: of the controllers' headless Service.
fn names() -> Vec<(IpAddr, String)> {
    let pods = Cluster::controllers().into_iter().zip(0..);
    let name = |pod: &str| format!("{pod}.{RELEASE}-controller.{RELEASE}.svc");
    pods.map(|(pod, number)| (network::address(number), name(&pod))).collect()
}

fn start_simulator(directory: &Path, logs: &Path) -> Result<Program> {
    let (user, host) = (directory.join("appliance-user"), directory.join("appliance-host"));
    let authorized = generate_client_key(&user).context("make the user's key")?;
    let public = generate_client_key(&host).context("make the host's key")?;
    fs::write(host.with_extension("pub"), format!("{public}\n"))?;
    let pool = VOLUME_PATH.trim_start_matches('/').split('/').next().unwrap_or_default();
    let settings = format!(
        "listen = \"{}:{SSH_PORT}\"\nauthorized_keys = [{authorized:?}]\nhost_key_file = {host:?}\n\
         state_file = {:?}\n[[pools]]\nname = {pool:?}\nsize_bytes = {POOL_BYTES}\n",
        network::GATEWAY,
        directory.join("appliance.json"),
    );
    let config = directory.join("appliance.toml");
    fs::write(&config, settings).context("write the appliance's settings")?;
    let mut command = Command::new(tools::rds_csi()?);
    command.args(["--log-format", "human", "simulator", "--config"]).arg(config);
    Program::start("appliance", command, logs)
}

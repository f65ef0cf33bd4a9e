//! kubelet's part, as far as these tests need it: pods that the real controllers made become processes, with the
//! arguments, settings, Secrets, tokens, users and probes that their manifests say.
//!
//! Life cycle: [`Kubelet::run`] binds a pod to a node and starts its containers, each in a file system of its own and all
//! in one network namespace; a container that is killed stays away until it is started again, one that ends by itself
//! is restarted by [`Kubelet::tend`]; all end with this. What is not there is an image: a container's program is the one
//! that its image's name says.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rds_csi::http;
use serde_json::{Value, json};
use tests::requests::eventually_within;
use tests::tools;

use crate::api::Api;
use crate::network;
use crate::program::{Program, built, tree};
use crate::volumes::{Volumes, make_directory};

/// How long a container that is there to end may run, in milliseconds.
const JOB_MS: u64 = 60_000;
/// How long a command in a container may take, in seconds.
const COMMAND_S: u64 = 20;
/// Since when all has been as it is, to the API server.
const LONG_AGO: &str = "2026-01-01T00:00:00Z";

/// The driver's containers.
const OURS: [&str; 2] = ["controller", "node"];
/// What clients log if RBAC refuses something.
const REFUSED: [&str; 2] = ["forbidden", "Forbidden"];
/// Which of a container's arguments is its user.
const USER: usize = 3;

/// A container, and what it is started with.
#[derive(Debug)]
struct Container {
    spec: Value,
    /// The arguments of `tests/kubernetes/container`.
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    program: Program,
    /// It was killed, and is not restarted.
    is_held_down: bool,
}

/// A pod whose containers were started.
#[derive(Debug)]
struct Pod {
    namespace: String,
    address: IpAddr,
    containers: BTreeMap<String, Container>,
}

/// All pods that run, on all nodes.
pub(crate) struct Kubelet {
    api: Api,
    api_server: SocketAddr,
    directory: PathBuf,
    logs: PathBuf,
    /// `/etc/hosts` of every container: what the cluster's DNS would say.
    hosts: PathBuf,
    pods: Mutex<BTreeMap<String, Pod>>,
}

impl Kubelet {
    /// Without pods yet, with what it keeps in `directory`.
    pub(crate) fn new(
        api: Api,
        api_server: SocketAddr,
        directory: &Path,
        logs: &Path,
        hosts: &[(IpAddr, String)],
    ) -> Result<Self> {
        let path = directory.join("hosts.txt");
        let lines: Vec<_> = hosts.iter().map(|(address, name)| format!("{address} {name}\n")).collect();
        fs::write(&path, lines.concat()).context("write the names")?;
        let (directory, logs) = (directory.to_owned(), logs.to_owned());
        Ok(Self { api, api_server, directory, logs, hosts: path, pods: Mutex::default() })
    }

    /// What is `/` on the host `node`.
    pub(crate) fn host(&self, node: &str) -> PathBuf {
        self.directory.join("hosts").join(node)
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of the pod of this name.
    pub(crate) fn address(&self, name: &str) -> Result<IpAddr> {
        self.with_pod(name, |pod| Ok(pod.address))
    }

    /// Fails if the API server refused anything to a container, as far as it logged that.
    pub(crate) fn expect_permitted(&self) -> Result<()> {
        let pods = self.pods();
        for container in pods.values().flat_map(|pod| pod.containers.values()) {
            let log = container.program.log();
            let refused = log.lines().find(|line| REFUSED.iter().any(|word| line.contains(word)));
            ensure!(refused.is_none(), "{}: {}", container.program.name, refused.unwrap_or_default());
        }
        Ok(())
    }

    /// The ends of all logs.
    pub(crate) fn log_ends(&self) -> Vec<String> {
        let pods = self.pods();
        let containers = pods.values().flat_map(|pod| pod.containers.values());
        containers.map(|container| container.program.log_end()).collect()
    }

    fn with_pod<T>(&self, name: &str, work: impl FnOnce(&mut Pod) -> Result<T>) -> Result<T> {
        work(self.pods().get_mut(name).with_context(|| format!("no pod {name} runs"))?)
    }

    fn with<T>(
        &self,
        pod: &str,
        container: &str,
        work: impl FnOnce(&mut Container) -> Result<T>,
    ) -> Result<T> {
        self.with_pod(pod, |found| {
            let found = found.containers.get_mut(container);
            work(found.with_context(|| format!("{pod} has no container {container}"))?)
        })
    }

    /// Starts the containers again that ended by themselves, at once as kubelet does the first time; which, and what
    /// they said last. The driver has no reason to end.
    pub(crate) fn tend(&self) -> Result<Vec<String>> {
        let mut restarted = Vec::new();
        for (name, pod) in self.pods().iter_mut() {
            for (container, found) in pod.containers.iter_mut().filter(|(_, found)| !found.is_held_down) {
                let Some(status) = found.program.ended()? else { continue };
                let end = found.program.log_end();
                ensure!(!OURS.contains(&container.as_str()), "{container} in {name}: {status}\n{end}");
                let said = end.lines().last().unwrap_or_default();
                restarted.push(format!("{container} in {name} ended ({status}) and is restarted: {said}"));
                found.program = self.spawn(name, container, &found.arguments, &found.environment)?;
            }
        }
        Ok(restarted)
    }

    /// Binds the pod to the node, makes its volumes, and starts its containers at the address of this number. `adapt`
    /// changes what is in files of ConfigMaps.
    pub(crate) async fn run(
        &self,
        pod: &Value,
        node: &str,
        number: u8,
        adapt: &(dyn Fn(&str, String) -> Result<String> + Sync),
    ) -> Result<()> {
        let text = |field: &str| pod["metadata"][field].as_str().map(str::to_owned);
        let (name, namespace) = text("name").zip(text("namespace")).context("a pod without a name")?;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                             "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        self.api.post(&format!("{path}/binding"), &binding).await?;
        let pod = self.api.get(&path).await?;
        let address = network::address(number);
        network::make_namespace(&name, number, address)?;
        let volumes = self.volumes(&pod, &name, node, adapt).await?;
        let mut running = Pod { namespace, address, containers: BTreeMap::new() };
        for spec in pod["spec"]["containers"].as_array().context("no containers")? {
            let container = spec["name"].as_str().context("a container without a name")?.to_owned();
            let Some(program) = program_of(spec)? else { continue };
            let started = self.start(&pod, spec, &container, &program, &volumes, address)?;
            running.containers.insert(container, started);
        }
        self.pods().insert(name, running);
        Ok(())
    }

    async fn volumes(
        &self,
        pod: &Value,
        name: &str,
        node: &str,
        adapt: &(dyn Fn(&str, String) -> Result<String> + Sync),
    ) -> Result<BTreeMap<String, PathBuf>> {
        let directory = self.directory.join("pods").join(name);
        let host = self.host(node);
        let maker = Volumes { api: &self.api, pod, directory: &directory, host: &host, adapt };
        let mut made = BTreeMap::new();
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            if let Some(path) = maker.make(volume).await? {
                made.insert(volume["name"].as_str().unwrap_or_default().to_owned(), path);
            }
        }
        Ok(made)
    }

    fn start(
        &self,
        pod: &Value,
        spec: &Value,
        name: &str,
        program: &Path,
        volumes: &BTreeMap<String, PathBuf>,
        address: IpAddr,
    ) -> Result<Container> {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let roots = self.directory.join("roots");
        let root = roots.join(format!("{pod_name}.{name}"));
        make_directory(&root)?;
        let mounts = self.mounts(spec, volumes, &roots.join(format!("{pod_name}.{name}.mounts")))?;
        let mut environment = environment(pod, spec)?;
        environment.push(("KUBERNETES_SERVICE_HOST".to_owned(), self.api_server.ip().to_string()));
        environment.push(("KUBERNETES_SERVICE_PORT".to_owned(), self.api_server.port().to_string()));
        environment.push(("POD_IP".to_owned(), address.to_string()));
        let mut arguments = vec![
            pod_name.to_owned(),
            root.display().to_string(),
            mounts.display().to_string(),
            user(pod, spec),
            program.display().to_string(),
        ];
        arguments.extend(command_line(spec, program, &environment)?);
        let started = self.spawn(pod_name, name, &arguments, &environment)?;
        Ok(Container { spec: spec.clone(), arguments, environment, program: started, is_held_down: false })
    }

    /// Writes down what is mounted where.
    fn mounts(&self, spec: &Value, volumes: &BTreeMap<String, PathBuf>, file: &Path) -> Result<PathBuf> {
        let mut lines = vec![format!("ro {} /etc/hosts\n", self.hosts.display())];
        for mount in spec["volumeMounts"].as_array().into_iter().flatten() {
            let (Some(name), Some(path)) = (mount["name"].as_str(), mount["mountPath"].as_str()) else {
                continue;
            };
            let Some(source) = volumes.get(name) else { continue };
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            lines.push(format!("{mode} {} {path}\n", source.display()));
        }
        fs::write(file, lines.concat()).context("write the mounts")?;
        Ok(file.to_owned())
    }

    fn spawn(
        &self,
        pod: &str,
        container: &str,
        arguments: &[String],
        environment: &[(String, String)],
    ) -> Result<Program> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network::namespace(pod)));
        command.args(["unshare", "--mount", "--uts", "--propagation", "private"]);
        command.arg(tree().join("tests/kubernetes/container")).args(arguments);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Program::start(&format!("{pod}.{container}"), command, &self.logs)
    }

    /// SIGKILL to a container, which stays away.
    pub(crate) fn kill(&self, pod: &str, container: &str) -> Result<()> {
        self.with(pod, container, |found| {
            found.is_held_down = true;
            found.program.kill()
        })
    }

    /// Starts a container again that was killed.
    pub(crate) fn start_again(&self, pod: &str, container: &str) -> Result<()> {
        self.with(pod, container, |found| {
            found.program = self.spawn(pod, container, &found.arguments, &found.environment)?;
            found.is_held_down = false;
            Ok(())
        })
    }

    /// Waits for the end of a container that has to end, and tells the API server that its pod succeeded.
    pub(crate) async fn finish(&self, pod: &str, container: &str) -> Result<()> {
        eventually_within(JOB_MS, &format!("{container} in {pod} ends"), async || {
            self.with(pod, container, |found| {
                let ended = found.program.ended()?.map(|status| status.success());
                ensure!(ended == Some(true), "{ended:?}\n{}", found.program.log_end());
                Ok(())
            })
        })
        .await?;
        self.tell(pod, "Succeeded", json!({"terminated": {"exitCode": 0}})).await?;
        self.pods().remove(pod);
        Ok(())
    }

    /// Asks what a container's probe asks, once; fails with the end of its log.
    pub(crate) async fn probe(&self, pod: &str, container: &str, probe: &str) -> Result<()> {
        let (spec, log) =
            self.with(pod, container, |found| Ok((found.spec.clone(), found.program.log_end())))?;
        let get = &spec[probe]["httpGet"];
        let path = get["path"].as_str().context("no probe by HTTP")?;
        let named = |port: &&Value| port["name"] == get["port"];
        let ports = spec["ports"].as_array();
        let port = ports.and_then(|ports| ports.iter().find(named));
        let port = port.map_or(&get["port"], |port| &port["containerPort"]).as_u64().context("no port")?;
        let address = format!("{}:{port}", self.address(pod)?);
        let answer = http::get(&address, path).await.with_context(|| log.clone())?;
        ensure!(answer.status == 200, "{}\n{log}", answer.status);
        Ok(())
    }

    /// Tells the API server that the pod runs and is ready.
    pub(crate) async fn tell_ready(&self, pod: &str) -> Result<()> {
        self.tell(pod, "Running", json!({"running": {"startedAt": LONG_AGO}})).await
    }

    async fn tell(&self, name: &str, phase: &str, state: Value) -> Result<()> {
        let (namespace, address) = self.with_pod(name, |pod| Ok((pod.namespace.clone(), pod.address)))?;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let is_ready = phase == "Running";
        let spec = self.api.get(&path).await?;
        let of_container = |container: &Value| {
            json!({"name": container["name"], "image": container["image"], "imageID": "none", "ready": is_ready,
                   "restartCount": 0, "state": state})
        };
        let containers = spec["spec"]["containers"].as_array().into_iter().flatten();
        let ready = if is_ready { "True" } else { "False" };
        let condition = |kind: &str| json!({"type": kind, "status": ready, "lastTransitionTime": LONG_AGO});
        let status = json!({"status": {
            "phase": phase,
            "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": containers.map(of_container).collect::<Vec<_>>(),
        }});
        self.api.patch(&format!("{path}/status"), &status).await.map(drop)
    }

    /// Runs a command in a container, as `kubectl exec` does: what it printed, if it succeeded.
    pub(crate) async fn execute(&self, pod: &str, container: &str, words: &[&str]) -> Result<String> {
        let of = |found: &mut Container| {
            let user = found.arguments.get(USER).cloned().unwrap_or_default();
            Ok((found.program.pid().to_string(), user, found.environment.clone()))
        };
        let (pid, user, environment) = self.with(pod, container, of)?;
        let mut command = tokio::process::Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--net", "--uts", "--root", "--wd=/"]);
        if user != PRIVILEGED {
            command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        }
        command.args(words).env_clear().env("PATH", "/usr/local/bin:/usr/bin");
        command.envs(environment).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(COMMAND_S), command.output()).await;
        let output = output.with_context(|| format!("{words:?} takes more than {COMMAND_S} s"))??;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} in {pod}: {}: {complaint}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A user who may do everything on the host.
const PRIVILEGED: &str = "privileged";

/// Who a container runs as. What is not privileged has to drop all capabilities.
fn user(pod: &Value, spec: &Value) -> String {
    let own = &spec["securityContext"];
    if own["privileged"] == true {
        return PRIVILEGED.to_owned();
    }
    let said = own["runAsUser"].as_u64().or(pod["spec"]["securityContext"]["runAsUser"].as_u64());
    said.unwrap_or_default().to_string()
}

/// What a container's image starts; `None` if it is not here.
fn program_of(spec: &Value) -> Result<Option<PathBuf>> {
    let image = spec["image"].as_str().context("a container without an image")?;
    let name = image.rsplit('/').next().and_then(|last| last.split([':', '@']).next()).unwrap_or_default();
    match name {
        "rds-csi" => tools::rds_csi().map(Some),
        "csi-provisioner" | "csi-attacher" | "csi-resizer" => built(name).map(Some),
        // Their sources are not to be had as Go modules.
        "livenessprobe" | "csi-node-driver-registrar" => Ok(None),
        _ => anyhow::bail!("nothing is known of the image {image}"),
    }
}

fn environment(pod: &Value, spec: &Value) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for variable in spec["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without a name")?;
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = match field {
            None => variable["value"].as_str(),
            Some("metadata.name") => pod["metadata"]["name"].as_str(),
            Some("metadata.namespace") => pod["metadata"]["namespace"].as_str(),
            Some("spec.nodeName") => pod["spec"]["nodeName"].as_str(),
            Some(_) => None,
        };
        found.push((name.to_owned(), value.with_context(|| format!("{name} has no value"))?.to_owned()));
    }
    Ok(found)
}

/// The command and its arguments, with the variables in them.
fn command_line(spec: &Value, program: &Path, environment: &[(String, String)]) -> Result<Vec<String>> {
    let file = program.file_name().context("a program without a name")?.to_string_lossy();
    let mut line = Vec::new();
    match spec["command"].as_array() {
        Some(words) => line.extend(words.iter().filter_map(Value::as_str).map(str::to_owned)),
        None => line.push(format!("/usr/local/bin/{file}")),
    }
    for word in spec["args"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let expanded = environment
            .iter()
            .fold(word.to_owned(), |word, (name, value)| word.replace(&format!("$({name})"), value));
        line.push(expanded);
    }
    Ok(line)
}

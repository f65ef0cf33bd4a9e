//! The chart, installed as a user does: what it renders is taken by a real API server, and what the real controllers
//! make of it becomes processes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::csi::v1::NodeGetInfoRequest;
use serde_json::{Value, json};
use tests::tools;

use crate::cluster::{CONTROLLER, Cluster, DRIVER, NAMESPACE, NODES, RELEASE, SSH_PORT, VOLUME_PATH};
use crate::node;
use crate::objects::kubevirt_kind;
use crate::program::tree;
use crate::{network, objects};

/// Groups whose kinds are not Kubernetes' own.
const OTHERS: [&str; 2] = ["monitoring.coreos.com/", "cert-manager.io/"];
/// Sets of values whose objects have to be accepted, beside the manifests in the tree.
const SETS: [&str; 4] = ["minimal", "everything", "cert-manager", "host-path"];
/// The number of the first node's pod, among the pods' addresses; controllers are before.
const FIRST_NODE: u8 = 10;
/// The number of the certificates' Job.
const JOB: u8 = 20;

/// Tries all sets of values, installs one, and starts what it consists of.
pub(crate) async fn story(cluster: &mut Cluster) -> Result<()> {
    prepare(cluster).await.context("what is there before the driver")?;
    try_all(cluster).await?;
    let directory = cluster.directory.join("chart");
    let values = cluster.directory.join("values.yaml");
    fs::write(&values, our_values(cluster.has_topology).to_string())?;
    let objects = render(&directory, Some(&values))?;
    for object in &objects {
        let answer = cluster.api.create(object, false).await?;
        answer.accepted().with_context(|| format!("install {}", named(object)))?;
    }
    cluster.say(&format!("installed: {} objects of the chart", objects.len()));
    certificates(cluster).await.context("the Job for certificates")?;
    start_controllers(cluster).await?;
    start_nodes(cluster).await?;
    expect_available(cluster).await
}

/// Values for what runs here.
fn our_values(has_topology: bool) -> Value {
    let class = |name: &str, mode: &str, parameters: Value| json!({"name": name, "volumeBindingMode": mode, "parameters": parameters});
    json!({
        "rds": {"managementIP": network::GATEWAY, "storageIP": network::GATEWAY, "sshPort": SSH_PORT,
                "basePath": VOLUME_PATH},
        "image": {"repository": "registry.example/rds-csi"},
        "raftData": {"storageClassName": "local-raft"},
        "topology": if has_topology { json!({"topology.kubernetes.io/zone": "a"}) } else { json!({}) },
        // The chart's own two, and one whose free space is published if there is a topology.
        "storageClasses": [
            class("rds-ext4", "Immediate", json!({"fsType": "ext4"})),
            class("rds-vm", "Immediate", json!({"migrationTimeoutSeconds": "900"})),
            class("rds-late", "WaitForFirstConsumer", json!({"fsType": "xfs"})),
        ],
    })
}

/// Nodes, namespaces, KubeVirt's kinds, and the class of the ledgers.
async fn prepare(cluster: &Cluster) -> Result<()> {
    let managed = "volumes.kubernetes.io/controller-managed-attach-detach";
    for node in NODES {
        let node = json!({"apiVersion": "v1", "kind": "Node",
                          "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node},
                                       "annotations": {managed: "true"}}});
        cluster.api.create(&node, false).await?.accepted()?;
    }
    for name in [NAMESPACE, "kubevirt"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        cluster.api.create(&namespace, false).await?.accepted()?;
    }
    let kinds = [
        ("VirtualMachineInstance", "virtualmachineinstances"),
        ("VirtualMachineInstanceMigration", "virtualmachineinstancemigrations"),
        ("KubeVirt", "kubevirts"),
    ];
    for (kind, plural) in kinds {
        cluster.api.create(&kubevirt_kind(kind, plural), false).await?.accepted()?;
    }
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                       "metadata": {"name": "local-raft"}, "provisioner": "kubernetes.io/no-provisioner"});
    cluster.api.create(&class, false).await?.accepted()?;
    let namespace = fs::read_to_string(tree().join("deploy/manifests/namespace.yaml"))?;
    let namespace: Value = serde_saphyr::from_str(&namespace)?;
    cluster.api.create(&namespace, false).await?.accepted()?;
    cluster.say(&format!("{} nodes, KubeVirt's kinds, and the namespace of deploy/manifests", NODES.len()));
    Ok(())
}

/// Has the API server say of each object of each set that it could be made; nothing is.
async fn try_all(cluster: &Cluster) -> Result<()> {
    let values = tree().join("tests/deploy/values");
    let mut tried = 0;
    for set in SETS {
        let directory = cluster.directory.join(set);
        let objects = render(&directory, Some(&values.join(format!("{set}.yaml"))))?;
        tried += try_objects(cluster, &objects).await.with_context(|| format!("values of {set}"))?;
    }
    let manifests = fs::read_to_string(tree().join("deploy/manifests/rds-csi.yaml"))?;
    tried += try_objects(cluster, &parse(&manifests)?).await.context("deploy/manifests")?;
    // A check that accepts everything would show nothing.
    let mut wrong = objects::claim("wrong", "rds-vm", "ReadWriteMany", "Block");
    wrong["spec"]["storageClas"] = json!("rds-vm");
    let answer = cluster.api.create(&wrong, true).await?;
    ensure!(answer.status == 400 && answer.message().contains("storageClas"), "{answer:?}");
    cluster.say(&format!(
        "{tried} objects of {} sets pass strict validation; a wrong field does not",
        SETS.len() + 1
    ));
    Ok(())
}

async fn try_objects(cluster: &Cluster, objects: &[Value]) -> Result<usize> {
    let ours = |object: &&Value| {
        !OTHERS.iter().any(|group| object["apiVersion"].as_str().unwrap_or_default().starts_with(group))
    };
    let objects: Vec<_> = objects.iter().filter(ours).collect();
    for object in &objects {
        let answer = cluster.api.create(object, true).await?;
        answer.accepted().with_context(|| format!("try {}", named(object)))?;
    }
    Ok(objects.len())
}

fn named(object: &Value) -> String {
    format!("{} {}", object["kind"], object["metadata"]["name"])
}

/// What `deploy/render` makes of the chart.
fn render(into: &Path, values: Option<&Path>) -> Result<Vec<Value>> {
    let mut command = Command::new(tree().join("deploy/render"));
    command.arg(into).args(values).env("HELM", tools::helm()?);
    let output = command.output().context("start deploy/render")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    parse(&fs::read_to_string(into.join("rds-csi.yaml"))?)
}

fn parse(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("YAML")?;
    let objects: Vec<_> = documents.into_iter().filter(|document| !document.is_null()).collect();
    ensure!(objects.len() > 10, "only {} objects", objects.len());
    Ok(objects)
}

/// Runs the Job that makes certificates, as its ServiceAccount, and gives the appliance's Secret to the rest.
async fn certificates(cluster: &mut Cluster) -> Result<()> {
    let job = pods_of(cluster, "certificates", 1).await?.remove(0);
    let name = job["metadata"]["name"].as_str().context("a pod without a name")?.to_owned();
    cluster.kubelet.run(&job, NODES[0], JOB, &|_, text| Ok(text)).await?;
    cluster.kubelet.finish(&name, "certificates").await?;
    let path = format!("/apis/batch/v1/namespaces/{RELEASE}/jobs/{RELEASE}-certificates-1");
    cluster
        .eventually("the Job is complete", async || {
            let job = cluster.api.get(&path).await?;
            ensure!(job["status"]["succeeded"] == 1, "{}", job["status"]);
            Ok(())
        })
        .await?;
    for kind in ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}/{RELEASE}-webhook");
        let found = cluster.api.get(&path).await?;
        let bundle = found["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default();
        ensure!(!bundle.is_empty(), "{kind}: no authority: {found}");
    }
    cluster.say("the Job made the certificates, and wrote the authority into both webhook configurations");
    let read = |name: &str| -> Result<String> {
        let bytes = fs::read(cluster.directory.join(name)).with_context(|| format!("read {name}"))?;
        Ok(BASE64_STANDARD.encode(bytes))
    };
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
                        "metadata": {"name": "rds-csi-appliance", "namespace": RELEASE},
                        "data": {"rds-private-key": read("appliance-user")?,
                                 "rds-host-key": read("appliance-host.pub")?}});
    cluster.api.create(&secret, false).await?.accepted().map(drop)
}

/// The pods that the real controllers made for a component, once there are so many, by name.
async fn pods_of(cluster: &Cluster, component: &str, count: usize) -> Result<Vec<Value>> {
    let path =
        format!("/api/v1/namespaces/{RELEASE}/pods?labelSelector=app.kubernetes.io/component={component}");
    cluster
        .eventually(&format!("{count} pods of {component}"), async || {
            let mut pods = cluster.api.list(&path).await?;
            ensure!(pods.len() == count, "{}", pods.len());
            pods.sort_by_key(|pod| pod["metadata"]["name"].to_string());
            Ok(pods)
        })
        .await
}

async fn start_controllers(cluster: &mut Cluster) -> Result<()> {
    let pods = pods_of(cluster, CONTROLLER, NODES.len()).await?;
    for ((pod, node), number) in pods.iter().zip(NODES).zip(0..) {
        cluster.kubelet.run(pod, node, number, &|_, text| Ok(text)).await?;
    }
    for pod in Cluster::controllers() {
        cluster.wait_for_probe(&pod, CONTROLLER, "readinessProbe").await?;
        for sidecar in ["provisioner", "attacher", "resizer"] {
            cluster.wait_for_probe(&pod, sidecar, "livenessProbe").await?;
        }
        cluster.kubelet.tell_ready(&pod).await?;
    }
    let leader = cluster.leader().await?;
    cluster.say(&format!(
        "3 controllers are ready, each with provisioner, attacher and resizer, as user 65532; {leader} leads"
    ));
    Ok(())
}

async fn start_nodes(cluster: &mut Cluster) -> Result<()> {
    let pods = pods_of(cluster, "node", NODES.len()).await?;
    let fake = |_: &str, text: String| -> Result<String> {
        let mut settings: toml::Table = text.parse().context("the node's settings")?;
        let fabric = toml::toml! { kind = "fake"
        directory = "/var/lib/kubelet/fake-machine" };
        settings.insert("fabric".to_owned(), fabric.into());
        Ok(settings.to_string())
    };
    for (pod, number) in pods.iter().zip(FIRST_NODE..) {
        let node = node_of(pod)?;
        cluster.kubelet.run(pod, &node, number, &fake).await?;
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        // The plugin is ready when the controllers know the node, which its token has to prove.
        cluster.wait_for_probe(name, "node", "readinessProbe").await?;
        cluster.kubelet.tell_ready(name).await?;
        register(cluster, &node).await.with_context(|| format!("register the plugin on {node}"))?;
    }
    cluster.say("3 node plugins are ready: their tokens were reviewed and name their nodes; fabric: fake");
    Ok(())
}

/// Where a DaemonSet's pod has to run.
fn node_of(pod: &Value) -> Result<String> {
    let terms =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
    let term = pod.pointer(terms).context("a DaemonSet's pod without a node")?;
    let node = term["matchFields"][0]["values"][0].as_str();
    Ok(node.context("a DaemonSet's pod without a node")?.to_owned())
}

/// kubelet's part of the registration: it asks the plugin who and where it is, labels the node, and writes the CSINode.
async fn register(cluster: &Cluster, node: &str) -> Result<()> {
    let answer = node::client(cluster, node)?.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
    let owner = cluster.api.get(&format!("/api/v1/nodes/{node}")).await?;
    let topology = answer.accessible_topology.clone().unwrap_or_default().segments;
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
        "metadata": {"name": node, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node,
                                                        "uid": owner["metadata"]["uid"]}]},
        "spec": {"drivers": [{"name": DRIVER, "nodeID": answer.node_id,
                              "topologyKeys": topology.keys().collect::<Vec<_>>(),
                              "allocatable": {"count": answer.max_volumes_per_node}}]},
    });
    let labels = json!({"metadata": {"labels": topology}});
    cluster.api.patch(&format!("/api/v1/nodes/{node}"), &labels).await?;
    ensure!(answer.node_id == node && answer.max_volumes_per_node > 0, "{answer:?}");
    cluster.api.create(&object, false).await?.accepted().map(drop)
}

/// The real controllers see the pods by the selectors that the chart says.
async fn expect_available(cluster: &Cluster) -> Result<()> {
    let wanted = [
        (
            format!("/apis/policy/v1/namespaces/{RELEASE}/poddisruptionbudgets/{RELEASE}-controller"),
            "currentHealthy",
        ),
        (
            format!("/apis/apps/v1/namespaces/{RELEASE}/statefulsets/{RELEASE}-controller"),
            "availableReplicas",
        ),
        (format!("/apis/apps/v1/namespaces/{RELEASE}/daemonsets/{RELEASE}-node"), "numberAvailable"),
    ];
    for (path, field) in wanted {
        cluster
            .eventually(&path, async || {
                let found = cluster.api.get(&path).await?;
                ensure!(found["status"][field] == NODES.len(), "{}", found["status"]);
                Ok(())
            })
            .await?;
    }
    cluster.say("StatefulSet and DaemonSet are available, the PodDisruptionBudget counts 3");
    Ok(())
}

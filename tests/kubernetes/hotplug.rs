//! The webhooks of the chart as the API server itself calls them: by their Service, with the authority that the Job
//! wrote. Whom the guard is for, `matchConditions` and the driver both say; which of them let a caller pass is not seen.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;
use crate::cluster::{Cluster, NAMESPACE, NODES, RELEASE, path};
use crate::migration::kubevirt;
use crate::{network, objects};

/// Whom KubeVirt deletes pods as.
const ACCOUNT: (&str, &str) = ("kubevirt", "kubevirt-controller");
const VM: &str = "plugged";
const NODE: &str = NODES[0];
/// The claims, by the names of the VM's volumes.
const VOLUMES: [(&str, &str); 2] = [("data", "plugged-data"), ("logs", "plugged-logs")];

/// Tells it.
pub(crate) async fn story(cluster: &mut Cluster) -> Result<()> {
    serve(cluster).await.context("the webhook's Service")?;
    let virt_controller = virt_controller(cluster).await?;
    let mut made = Vec::new();
    for (_, claim) in VOLUMES {
        made.push((claim, cluster.claim(&objects::disk(claim)).await?));
    }
    let vmi = cluster.api.create(&vm(), false).await?.accepted()?;
    let launcher = objects::launcher("virt-launcher-plugged", NODE, &vmi, &[]);
    let launcher = cluster.run_pod(&launcher).await?;

    let first = cluster.run_pod(&attachment_pod("hp-volume-1", &launcher, true)).await?;
    let status = volume_status(&first);
    cluster.api.patch(&format!("{}/{VM}", kubevirt("virtualmachineinstances")), &status).await?;
    let said = denied(cluster, &virt_controller, "hp-volume-1").await?;
    cluster.say(&format!("virt-controller deletes the only attachment pod: 409, {said}"));
    let pod = cluster.api.get(&format!("{}/hp-volume-1", path("pods"))).await?;
    let held = &pod["metadata"]["annotations"]["rds.csi.srvlab.io/held-since"];
    ensure!(held.is_string(), "no annotation: {}", pod["metadata"]);
    cluster.say(&format!("the pod is annotated: held since {held}"));

    // As KubeVirt makes it: without mounts for the volumes.
    let second = cluster.run_pod(&attachment_pod("hp-volume-2", &launcher, false)).await?;
    let devices = &second["spec"]["containers"][0]["volumeDevices"];
    let named = |name: &str| devices.as_array().into_iter().flatten().any(|device| device["name"] == name);
    ensure!(VOLUMES.iter().all(|(name, _)| named(name)), "not added: {}", second["spec"]["containers"]);
    cluster.say(&format!("a second one, made without devices: the mutating webhook added {devices}"));
    allowed(cluster, &virt_controller, "hp-volume-1").await?;
    cluster.say("virt-controller deletes the first one, which the second covers: allowed");

    denied(cluster, &virt_controller, "hp-volume-2").await?;
    cluster.api.delete(&format!("{}/hp-volume-2", path("pods"))).await?;
    cluster.say("the second is denied to virt-controller, and anybody else may delete it");
    cluster.events(VOLUMES[0].1, &["HotplugVolumeHeld"]).await?;
    cluster.api.delete(&format!("{}/virt-launcher-plugged", path("pods"))).await?;
    cluster.api.delete(&format!("{}/{VM}", kubevirt("virtualmachineinstances"))).await?;
    for (claim, volume) in made {
        cluster.detached(&volume, NODE).await?;
        cluster.delete_claim(claim, &volume).await?;
    }
    Ok(())
}

/// kube-proxy's part: the Service's address leads to a pod that its EndpointSlice has.
async fn serve(cluster: &Cluster) -> Result<()> {
    let name = format!("{RELEASE}-webhook");
    let service = cluster.api.get(&format!("/api/v1/namespaces/{RELEASE}/services/{name}")).await?;
    let address = service["spec"]["clusterIP"].as_str().context("no address")?;
    let port = service["spec"]["ports"][0]["port"].as_u64().context("no port")?;
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{RELEASE}/endpointslices?labelSelector=kubernetes.io/service-name={name}"
    );
    let pods = cluster
        .eventually("the webhook's endpoints", async || {
            let slices = cluster.api.list(&path).await?;
            let slice = slices.first().context("no slice")?;
            let port = slice["ports"][0]["port"].as_u64().context("no port")?;
            let endpoints = slice["endpoints"].as_array().context("no endpoints")?;
            let ready = endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true);
            let pods: Vec<_> = ready
                .filter_map(|endpoint| endpoint["addresses"][0].as_str())
                .map(|address| format!("{address}:{port}"))
                .collect();
            ensure!(pods.len() == NODES.len(), "{slice}");
            Ok(pods)
        })
        .await?;
    network::add_service_address(address)?;
    let listener = TcpListener::bind(format!("{address}:{port}")).await.context("serve the Service")?;
    cluster.say(&format!("the webhook's Service {address}:{port} leads to {}", pods.join(", ")));
    tokio::spawn(async move {
        // One after the other, as Services do more or less.
        for pod in pods.iter().cycle() {
            let Ok((mut caller, _)) = listener.accept().await else { return };
            let pod = pod.clone();
            tokio::spawn(async move {
                let mut target = TcpStream::connect(&pod).await?;
                copy_bidirectional(&mut caller, &mut target).await
            });
        }
    });
    Ok(())
}

/// The API server as KubeVirt's controller, which may delete pods.
async fn virt_controller(cluster: &Cluster) -> Result<Api> {
    let (namespace, name) = ACCOUNT;
    let metadata = json!({"name": name, "namespace": namespace});
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
               "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
               "metadata": {"name": name},
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
               "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]}),
    ];
    for object in &objects {
        cluster.api.create(object, false).await?.accepted()?;
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let answer = cluster.api.post(&path, &request).await?;
    Ok(cluster.api.with_token(answer["status"]["token"].as_str().context("no token")?))
}

/// A VM with two hotplugged volumes.
fn vm() -> Value {
    let volume = |(name, claim): &(&str, &str)| json!({"name": name, "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}});
    let mut vmi = objects::vmi(VM, &[]);
    vmi["spec"]["volumes"] = VOLUMES.iter().map(volume).collect();
    vmi
}

/// What KubeVirt says of the VM once the guest has what the attachment pod holds.
fn volume_status(pod: &Value) -> Value {
    let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
    let of = |(volume, claim): &(&str, &str)| {
        json!({"name": volume, "target": "sda", "phase": "Ready",
               "hotplugVolume": {"attachPodName": name, "attachPodUID": uid},
               "persistentVolumeClaimInfo": {"claimName": claim}})
    };
    json!({"status": {"phase": "Running", "nodeName": NODE,
                      "volumeStatus": VOLUMES.iter().map(of).collect::<Vec<_>>()}})
}

/// An attachment pod, with devices for its volumes or without.
fn attachment_pod(name: &str, launcher: &Value, has_devices: bool) -> Value {
    let volume =
        |(name, claim): &(&str, &str)| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}});
    let device = |(name, _): &(&str, &str)| json!({"name": name, "devicePath": format!("/path/{name}/uid")});
    let mut container = json!({"name": "hotplug-disk", "image": "registry.example/any"});
    if has_devices {
        container["volumeDevices"] = VOLUMES.iter().map(device).collect();
    }
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubevirt.io": "hotplug-disk"},
                        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "controller": true,
                                             "name": launcher["metadata"]["name"],
                                             "uid": launcher["metadata"]["uid"]}]},
           "spec": {"nodeName": NODE, "containers": [container],
                    "volumes": VOLUMES.iter().map(volume).collect::<Vec<_>>()}})
}

/// The sentence by which a deletion is denied. Until the replicas have seen what it is denied for, it is only tried.
async fn denied(cluster: &Cluster, virt_controller: &Api, pod: &str) -> Result<String> {
    let pod = format!("{}/{pod}", path("pods"));
    cluster
        .eventually("the deletion is denied", async || {
            let answer = virt_controller.ask("DELETE", &format!("{pod}?dryRun=All"), None).await?;
            ensure!(answer.status == 409, "{answer:?}");
            Ok(())
        })
        .await?;
    let answer = virt_controller.ask("DELETE", &pod, None).await?;
    ensure!(answer.status == 409, "not denied: {answer:?}");
    let said = answer.message().to_owned();
    ensure!(VOLUMES.iter().all(|(name, _)| said.contains(name)), "not named: {said}");
    Ok(said)
}

/// The pod is deleted, as soon as it may be.
async fn allowed(cluster: &Cluster, virt_controller: &Api, pod: &str) -> Result<()> {
    let pod = format!("{}/{pod}", path("pods"));
    cluster
        .eventually("the deletion is allowed", async || {
            let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
            let answer = virt_controller.ask("DELETE", &pod, Some(&options)).await?;
            answer.accepted().map(drop)
        })
        .await
}

//! The driver reads its settings and its command lines itself, with the files that the pods mount: what it would refuse
//! in a cluster it refuses here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Parser;
use controller::ControllerConfig;
use node::{FabricConfig, NodeConfig};
use rds_csi::Arguments;
use rds_csi::ctl::AccessFile;
use routeros_simulator::generate_client_key;
use serde_json::Value;

use crate::chart::{RELEASE, SETS, render};
use crate::expect_none;
use crate::objects::{Objects, Workload, list, text};

const CONTROLLERS: &str = "rds-csi-controller";
const NODES: &str = "rds-csi-node";
/// Where the settings and all that they name are mounted.
const SETTINGS: &str = "/etc/rds-csi";

/// The pod's template and the container of this name.
fn container<'a>(objects: &'a Objects, workload: &str, name: &str) -> (Workload<'a>, &'a Value) {
    let mut workloads = objects.workloads().into_iter();
    let workload =
        workloads.find(|known| text(known.object, "metadata/name") == workload).expect("a workload");
    let found = list(workload.spec(), "containers").iter().find(|container| text(container, "name") == name);
    (workload, found.expect("a container"))
}

fn volume<'a>(workload: &Workload<'a>, mount: &Value) -> Option<&'a Value> {
    list(workload.spec(), "volumes").iter().find(|volume| volume["name"] == mount["name"])
}

/// The mount that a path of the container lies in.
fn mount_of<'a>(container: &'a Value, path: &str) -> &'a Value {
    let holds = |mount: &&Value| Path::new(path).starts_with(text(mount, "mountPath"));
    let mounts = list(container, "volumeMounts").iter().filter(holds);
    mounts
        .max_by_key(|mount| text(mount, "mountPath").len())
        .unwrap_or_else(|| panic!("nothing is mounted at {path}"))
}

/// The projected files of a container: ConfigMaps as they are, Secrets and tokens with something in them.
fn projected(objects: &Objects, workload: &Workload<'_>, container: &Value) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for mount in list(container, "volumeMounts") {
        let Some(volume) = volume(workload, mount) else { continue };
        let mut put = |path: &str, content: &str| {
            files.insert(format!("{}/{path}", text(mount, "mountPath")), content.to_owned());
        };
        for source in list(volume, "projected/sources") {
            if let Some(config_map) = source.get("configMap") {
                let found = objects.find("ConfigMap", text(config_map, "name")).expect("a ConfigMap");
                for (name, content) in found["data"].as_object().expect("files") {
                    put(name, content.as_str().expect("a text"));
                }
            }
            for item in source.get("secret").map_or(&[][..], |secret| list(secret, "items")) {
                put(text(item, "path"), text(item, "key"));
            }
            if let Some(token) = source.get("serviceAccountToken") {
                put(text(token, "path"), "token");
            }
        }
    }
    files
}

/// Puts the files under `root`, the appliance's keys as real ones.
fn lay_out(files: &BTreeMap<String, String>, root: &Path) {
    for (path, content) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        match content.as_str() {
            "rds-private-key" if path.exists() => {}
            "rds-private-key" => {
                let public = generate_client_key(&path).expect("a key");
                fs::write(path.with_file_name("rds-host-key"), public).expect("a file");
            }
            // Written with the private key, whichever comes first.
            "rds-host-key" => {}
            content => fs::write(&path, content.replace(SETTINGS, &under(root, SETTINGS))).expect("a file"),
        }
    }
}

fn under(root: &Path, path: &str) -> String {
    format!("{}{path}", root.display())
}

/// The settings file that a container's command line names, as a table, with one more entry.
fn settings(container: &Value, root: &Path, key: &str, value: &str) -> toml::Table {
    let arguments = list(container, "args").iter().filter_map(Value::as_str);
    let path = arguments.filter_map(|argument| argument.strip_prefix("--config=")).next().expect("--config");
    let content = fs::read_to_string(under(root, path)).expect("the settings are mounted");
    let mut table: toml::Table = content.parse().expect("TOML");
    table.insert(key.to_owned(), value.into());
    table
}

/// What replica `name` reads.
fn controller_config(objects: &Objects, root: &Path, name: &str) -> ControllerConfig {
    let (workload, container) = container(objects, CONTROLLERS, "controller");
    lay_out(&projected(objects, &workload, container), root);
    let settings = settings(container, root, "name", name).to_string();
    ControllerConfig::parse(&settings).unwrap_or_else(|mistakes| panic!("{}", mistakes.join("\n")))
}

fn node_config(objects: &Objects, root: &Path) -> NodeConfig {
    let (workload, container) = container(objects, NODES, "node");
    lay_out(&projected(objects, &workload, container), root);
    let mut settings = settings(container, root, "node_id", "worker-1");
    // Of the host that the plugin runs on; this one may have no machine id.
    settings.insert("host_nqn".to_owned(), "nqn.2014-08.org.nvmexpress:uuid:0".into());
    settings.try_into().unwrap_or_else(|error| panic!("node.toml: {error}"))
}

#[test]
fn the_driver_accepts_its_settings() {
    for set in SETS {
        let objects = render(set);
        let root = tempfile::tempdir().expect("a directory");
        let replicas =
            objects.find("StatefulSet", CONTROLLERS).expect("controllers")["spec"]["replicas"].as_u64();
        for ordinal in 0..replicas.expect("a number") {
            let name = format!("{CONTROLLERS}-{ordinal}");
            let config = controller_config(&objects, root.path(), &name);
            assert_eq!(config.peers.len() as u64, replicas.expect("a number"), "{set}");
            let own = format!("{name}.{CONTROLLERS}.{RELEASE}.svc:{}", config.listen.port());
            assert_eq!(config.own_address(), Some(own.as_str()), "{set}");
        }
        expect_none(&format!("{set}: node.toml"), &node_config(&objects, root.path()).validate());
        let access =
            AccessFile::read(Path::new(&under(root.path(), "/etc/rds-csi/ctl.toml"))).expect("ctl.toml");
        for file in [access.ca, access.cert, access.key] {
            assert!(file.is_file(), "{set}: ctl.toml names {}, which is not mounted", file.display());
        }
    }
}

#[test]
fn a_setting_that_the_driver_does_not_know_is_seen() {
    let mut objects = render("minimal");
    let named =
        |object: &&mut Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == CONTROLLERS;
    let config_map = objects.0.iter_mut().find(named).expect("a ConfigMap");
    let text = config_map["data"]["controller.toml"].as_str().expect("a text").replace("fence_name", "fence");
    config_map["data"]["controller.toml"] = text.into();
    let root = tempfile::tempdir().expect("a directory");
    let read = || controller_config(&objects, root.path(), "rds-csi-controller-0");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_err());
}

#[test]
fn both_halves_agree() {
    for set in SETS {
        let objects = render(set);
        let root = tempfile::tempdir().expect("a directory");
        let controller = controller_config(&objects, root.path(), "rds-csi-controller-0");
        let node = node_config(&objects, root.path());
        let peers: Vec<_> = controller.peers.iter().map(|peer| peer.address.clone()).collect();
        assert_eq!(node.controllers, peers, "{set}");
        assert_eq!(node.topology, controller.topology, "{set}");
        let FabricConfig::Nvme { nqn_prefix, .. } = &node.fabric else { panic!("{set}: no NVMe") };
        assert_eq!(*nqn_prefix, format!("{}:", controller.volumes.nqn_prefix.as_str()), "{set}");

        let (workload, container) = container(&objects, NODES, "node");
        let tokens = controller.kubernetes.node_tokens.expect("node tokens");
        assert_eq!(tokens.service_account, text(workload.spec(), "serviceAccountName"), "{set}");
        assert_eq!(tokens.namespace, text(workload.object, "metadata/namespace"), "{set}");
        let volume = volume(&workload, mount_of(container, SETTINGS)).expect("a volume");
        let issued =
            list(volume, "projected/sources").iter().find_map(|source| source.get("serviceAccountToken"));
        assert_eq!(tokens.audience, text(issued.expect("a token"), "audience"), "{set}");
    }
}

#[test]
fn ports_paths_and_sockets_are_where_the_settings_say() {
    for set in SETS {
        let objects = render(set);
        let root = tempfile::tempdir().expect("a directory");
        let config = controller_config(&objects, root.path(), "rds-csi-controller-0");
        let (workload, controller) = container(&objects, CONTROLLERS, "controller");
        let port = |name: &str| {
            let found = list(controller, "ports").iter().find(|port| port["name"] == name).expect("a port");
            found["containerPort"].as_u64().expect("a number")
        };
        assert_eq!(port("gateway"), u64::from(config.listen.port()), "{set}");
        assert_eq!(port("metrics"), u64::from(config.metrics_address.port()), "{set}");
        assert!(config.listen.ip().is_unspecified() && config.metrics_address.ip().is_unspecified(), "{set}");
        let data = config.data_dir.to_str().expect("UTF-8");
        assert_eq!(mount_of(controller, data)["name"], "raft", "{set}");
        for object in [CONTROLLERS, NODES] {
            let workload =
                objects.workloads().into_iter().find(|known| text(known.object, "metadata/name") == object);
            let workload = workload.expect("a workload");
            sidecars_share_the_socket(&workload, &config.csi_socket);
        }
        assert_eq!(text(workload.object, "kind"), "StatefulSet");
    }
}

/// Each sidecar asks the socket that the driver serves, on the same volume.
fn sidecars_share_the_socket(workload: &Workload<'_>, socket: &str) {
    let path = socket.strip_prefix("unix://").expect("a unix socket");
    let containers = list(workload.spec(), "containers");
    let shared = &mount_of(&containers[0], path)["name"];
    for sidecar in &containers[1..] {
        let place = workload.place(sidecar);
        assert_eq!(mount_of(sidecar, path)["name"], *shared, "{place}");
        let argument = format!("--csi-address={path}");
        assert!(list(sidecar, "args").iter().any(|word| *word == *argument), "{place}");
    }
}

/// The command lines of our own program in a rendering: arguments after the image's entry point, and hooks.
fn command_lines(objects: &Objects) -> Vec<(String, Vec<String>)> {
    let words = |list: &[Value]| -> Vec<String> {
        // What Kubernetes fills in is some name.
        let filled = |word: &str| word.replace("$(POD_NAME)", "pod-0").replace("$(NODE_NAME)", "node-a");
        list.iter().filter_map(Value::as_str).map(filled).collect()
    };
    let mut lines = Vec::new();
    for workload in objects.workloads() {
        for container in
            workload.containers().filter(|container| text(container, "image").contains("/rds-csi"))
        {
            let place = workload.place(container);
            if !list(container, "args").is_empty() {
                let program = ["rds-csi".to_owned()];
                lines.push((place.clone(), [&program[..], &words(list(container, "args"))].concat()));
            }
            let hook = words(list(container, "lifecycle/preStop/exec/command"));
            if !hook.is_empty() {
                lines.push((place, hook));
            }
        }
    }
    lines
}

#[test]
fn the_driver_understands_its_command_lines() {
    for set in SETS {
        let lines = command_lines(&render(set));
        let programs: Vec<_> = lines.iter().map(|(_, words)| words[1].as_str()).collect();
        for program in ["controller", "hand-over", "node"] {
            assert!(programs.contains(&program), "{set} runs only {programs:?}");
        }
        let refused = lines.iter().filter_map(|(place, words)| {
            Arguments::try_parse_from(words).err().map(|error| format!("{place}: {words:?}: {error}"))
        });
        expect_none(set, &refused.collect::<Vec<_>>());
    }
}

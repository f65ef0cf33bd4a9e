//! Helm and the sets of values.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tests::tools;

use crate::objects::{Objects, list, text};
use crate::root;

/// Sets of values that have to render: files in `values/`.
pub(crate) const SETS: [&str; 4] = ["minimal", "everything", "cert-manager", "host-path"];
/// The name of the release, and its namespace.
pub(crate) const RELEASE: &str = "rds-csi";
/// The oldest Kubernetes that the chart is for.
const KUBERNETES: &str = "1.32.0";

fn values(set: &str) -> PathBuf {
    root().join("tests/deploy/values").join(format!("{set}.yaml"))
}

fn helm(arguments: &[&str]) -> Output {
    let program = tools::helm().expect("helm");
    let output = Command::new(&program).args(arguments).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()))
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Renders the chart with a set of values and more `--set` words.
fn template(set: &str, more: &[&str]) -> Output {
    let values = values(set);
    let file = values.to_str().expect("a path in UTF-8");
    let fixed =
        ["template", RELEASE, "deploy/chart", "-n", RELEASE, "--kube-version", KUBERNETES, "-f", file];
    let sets = more.iter().flat_map(|word| ["--set", word]);
    helm(&fixed.into_iter().chain(sets).collect::<Vec<_>>())
}

/// The objects that the chart renders with a set of values.
pub(crate) fn render(set: &str) -> Objects {
    let output = template(set, &[]);
    assert!(output.status.success(), "helm template with {set} failed: {}", complaint(&output));
    parse(&String::from_utf8(output.stdout).expect("YAML in UTF-8"))
}

/// The objects of a YAML stream.
pub(crate) fn parse(yaml: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    let objects: Vec<_> = documents.into_iter().filter(|document| !document.is_null()).collect();
    assert!(objects.len() > 10, "only {} objects", objects.len());
    Objects(objects)
}

#[test]
fn it_is_accepted_by_helm_lint() {
    for set in SETS {
        let values = values(set);
        let output = helm(&["lint", "deploy/chart", "--strict", "-f", values.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn wrong_values_are_refused_with_a_sentence() {
    let refused = [
        ("rds.managementIP=", "rds.managementIP: say where"),
        ("rds.storageIP=", "rds.storageIP: say where"),
        ("rds.basePath=", "rds.basePath: say in which directory"),
        ("image.repository=", "image.repository: say where"),
        ("raftData.storageClassName=", "raftData.storageClassName: say a class"),
        ("raftData.storageClassName=rds-ext4", "is a class of this driver"),
        ("raftData.hostPath=/srv", "storageClassName and hostPath are both set"),
        ("raftData.storageClassName=,raftData.hostPath=/srv", "set controller.nodeSelector"),
        ("controller.replicas=4", "must be odd"),
        ("sidecarElection.renewDeadlineSeconds=6", "renewDeadlineSeconds < leaseDurationSeconds"),
        // What the schema says.
        ("controler.replicas=3", "controler"),
        ("rds.sshPort=70000", "sshPort"),
        ("image.digest=sha256:1", "digest"),
        ("certificates.certManager=perhaps", "certManager"),
        ("storageClasses[0].name=Upper", "/storageClasses/0/name"),
    ];
    for (word, sentence) in refused {
        let output = template("minimal", &[word]);
        let complaint = complaint(&output);
        assert!(!output.status.success(), "{word} is accepted");
        assert!(complaint.contains(sentence), "{word}: {sentence:?} is not in {complaint}");
    }
}

#[test]
fn an_older_kubernetes_is_refused() {
    let values = values("minimal");
    let file = values.to_str().expect("UTF-8");
    let output = helm(&["template", RELEASE, "deploy/chart", "--kube-version", "1.31.0", "-f", file]);
    assert!(!output.status.success() && complaint(&output).contains("1.32"), "{}", complaint(&output));
}

#[test]
fn free_space_is_promised_only_where_it_is_published() {
    // With a topology alone does the provisioner keep what it publishes.
    for (set, published) in [("minimal", false), ("everything", true), ("host-path", false)] {
        let objects = render(set);
        let driver = objects.of_kind("CSIDriver").next().expect("a CSIDriver");
        let workloads = objects.workloads();
        let mut containers = workloads.iter().flat_map(|workload| workload.containers());
        let provisioner = containers.find(|one| text(one, "name") == "provisioner").expect("a provisioner");
        let flag = list(provisioner, "args").iter().any(|word| word == "--enable-capacity");
        let promised = driver["spec"]["storageCapacity"] == true;
        assert_eq!((promised, flag), (published, published), "{set}");
    }
}

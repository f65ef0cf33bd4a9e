//! `deploy/manifests` is what `deploy/render` makes of the chart.

use std::fs;
use std::process::Command;

use tests::tools;

use crate::root;

#[test]
fn the_plain_manifests_are_the_rendered_chart() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(root().join("deploy/render"))
        .arg(directory.path())
        .env("HELM", tools::helm().expect("helm"))
        .output()
        .expect("deploy/render");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept = root().join("deploy/manifests");
    let mut rendered = 0;
    for entry in fs::read_dir(directory.path()).expect("what was rendered") {
        let file = entry.expect("a file").file_name();
        let read = |path: std::path::PathBuf| fs::read_to_string(&path).unwrap_or_default();
        let (fresh, old) = (read(directory.path().join(&file)), read(kept.join(&file)));
        assert!(
            fresh == old,
            "deploy/manifests/{} is not what the chart renders: run deploy/render",
            file.display()
        );
        rendered += 1;
    }
    assert!(rendered >= 2, "only {rendered} files were rendered");
}

#[test]
fn kustomize_names_every_file() {
    let directory = root().join("deploy/manifests");
    let text = fs::read_to_string(directory.join("kustomization.yaml")).expect("kustomization.yaml");
    let kustomization: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
    let mut named: Vec<_> =
        crate::objects::list(&kustomization, "resources").iter().filter_map(|name| name.as_str()).collect();
    named.sort_unstable();
    let entries = fs::read_dir(&directory).expect("deploy/manifests");
    let names = entries.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    let mut there: Vec<_> = names.filter(|name| name != "kustomization.yaml").collect();
    there.sort_unstable();
    assert_eq!(named, there);
}

//! The table of metrics in the docs is what controllers and nodes serve, no more and no less.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use tests::Lab;
use tests::requests::{MIB, create, insist};

const DOCS: &str = include_str!("../../docs/metrics.md");
const SOURCES: [&str; 3] = [
    include_str!("../../src/controller/src/metrics.rs"),
    include_str!("../../src/controller/src/metrics/hotplug.rs"),
    include_str!("../../src/node/src/metrics.rs"),
];

/// The table's rows: name and type.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
    let rows = DOCS.lines().filter(|line| line.starts_with("| `rds_csi_")).map(cells);
    rows.filter_map(|row| Some((row.get(1)?.trim_matches('`'), *row.get(2)?))).collect()
}

/// What a process serves: name and type.
fn served(metrics: &str) -> BTreeMap<&str, &str> {
    metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// What the sources register. Metrics with labels are served only once they have a value.
fn registered() -> BTreeSet<&'static str> {
    let registering = SOURCES.iter().filter_map(|text| text.split("#[cfg(test)]").next());
    let names = registering.flat_map(|text| text.split('"').filter(|word| word.starts_with("rds_csi_")));
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_have_every_metric_with_its_type() -> Result<()> {
    let documented = documented();
    let names: BTreeSet<_> = documented.keys().copied().collect();
    let registered = registered();
    ensure!(registered.len() > 20, "{registered:?}");
    ensure!(names == registered, "in docs: {:?}\nin the sources: {registered:?}", names);
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.leader_name().await?)?;
        insist("create", || csi.create(create("measured", MIB))).await?;
        let mut found = 0;
        for name in lab.controllers().into_iter().chain(lab.nodes()) {
            let text = lab.metrics(&name).await?;
            for (metric, kind) in
                served(&text).into_iter().filter(|(metric, _)| metric.starts_with("rds_csi_"))
            {
                let said = documented
                    .get(metric)
                    .with_context(|| format!("{metric} of {name} is not in the docs"))?;
                ensure!(*said == kind, "{metric} is a {kind}, the docs say {said}");
                found += 1;
            }
        }
        ensure!(found > 20, "only {found} metrics are served");
        Ok(())
    })
    .await
}

//! How long staging and unstaging took, split into steps, as the node plugins themselves count it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use node::Step;
use tests::vm::{NODES, VmLab};

/// The metric that a node plugin has of each step.
const METRIC: &str = "rds_csi_node_step_duration_seconds";

/// Sum and count of one step.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Total {
    seconds: f64,
    count: f64,
}

/// Node and step.
type Key = (&'static str, String);

/// What was counted in all cases so far. A node plugin begins at nothing each time it starts; what one counted that a
/// case killed is not in here.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    all: BTreeMap<Key, Total>,
    last: BTreeMap<Key, Total>,
    /// Which start of each node's plugin the last ones are of.
    starts: BTreeMap<&'static str, u32>,
}

impl Durations {
    /// Takes in what was counted since it was last asked.
    pub(crate) async fn look(&mut self, lab: &VmLab) -> Result<()> {
        for node in NODES {
            let found = totals(&lab.metrics(node).await?);
            self.add(node, lab.starts(node)?, found);
        }
        Ok(())
    }

    fn add(&mut self, node: &'static str, start: u32, found: BTreeMap<String, Total>) {
        if self.starts.insert(node, start) != Some(start) {
            self.last.retain(|(of, _), _| *of != node);
        }
        for (step, now) in found {
            let key = (node, step);
            let last = self.last.insert(key.clone(), now).unwrap_or_default();
            let total = self.all.entry(key).or_default();
            total.seconds += now.seconds - last.seconds;
            total.count += now.count - last.count;
        }
    }

    /// Fails unless each of `steps` was counted on each node.
    pub(crate) fn expect(&self, steps: &[Step]) -> Result<()> {
        for node in NODES {
            for step in steps {
                let found = self.all.get(&(node, step.name().to_owned()));
                ensure!(
                    found.is_some_and(|total| total.count > 0.0),
                    "no {} on {node} was timed",
                    step.name()
                );
            }
        }
        Ok(())
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        println!("vm: seconds on average, and how often:");
        for ((node, step), total) in &self.all {
            let mean = total.seconds / total.count.max(1.0);
            println!("  {node:8} {step:14} {mean:8.3} s {:5.0} x", total.count);
        }
    }
}

/// The steps in a text of metrics.
fn totals(text: &str) -> BTreeMap<String, Total> {
    let mut found: BTreeMap<String, Total> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        let Some((name, step)) = name.split_once("{step=\"") else { continue };
        let (Some((step, _)), Ok(value)) = (step.split_once('"'), value.parse()) else { continue };
        match name.strip_prefix(METRIC) {
            Some("_sum") => found.entry(step.to_owned()).or_default().seconds = value,
            Some("_count") => found.entry(step.to_owned()).or_default().count = value,
            Some(_) | None => {}
        }
    }
    found
}

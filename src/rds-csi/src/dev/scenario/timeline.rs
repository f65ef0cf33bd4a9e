//! What happened when, what was checked, and whether it held.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use serde::Serialize;

/// A story that cannot go on; why has been recorded.
#[derive(Debug)]
pub(crate) struct Stopped;

/// The record of a story.
#[derive(Debug)]
pub(crate) struct Timeline {
    scenario: &'static str,
    prints: bool,
    began: Instant,
    steps: Vec<Step>,
}

/// One step of a story.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    name: String,
    at_ms: u64,
    took_ms: u64,
    checks: Vec<Check>,
    measured_ms: BTreeMap<String, f64>,
    /// What was told by others: the ledger's account, lines of logs.
    told: Vec<String>,
}

/// One claim, and what the answers said.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    held: bool,
    expected: String,
    came: String,
}

/// A story's outcome, for machines.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    scenario: &'a str,
    all_checks_held: bool,
    checks: usize,
    failed_checks: usize,
    took_ms: u64,
    steps: &'a [Step],
}

impl Timeline {
    /// A story that begins now.
    pub(crate) fn new(scenario: &'static str, prints: bool) -> Self {
        Self { scenario, prints, began: Instant::now(), steps: Vec::new() }
    }

    /// Plays one step and records it; an error in it stops the story.
    pub(crate) async fn step<T>(
        &mut self,
        name: &str,
        play: impl AsyncFnOnce(&mut Step) -> anyhow::Result<T>,
    ) -> Result<T, Stopped> {
        let began = Instant::now();
        let mut step = Step {
            name: name.to_owned(),
            at_ms: whole_ms(began - self.began),
            took_ms: 0,
            checks: Vec::new(),
            measured_ms: BTreeMap::new(),
            told: Vec::new(),
        };
        let outcome = play(&mut step).await;
        step.took_ms = whole_ms(began.elapsed());
        let outcome = outcome.map_err(|error| {
            step.check("the step", false, "to be done".to_owned(), format!("{error:#}"));
            Stopped
        });
        if self.prints {
            print!("{}", step.render());
        }
        self.steps.push(step);
        outcome
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.steps.iter().flat_map(|step| &step.checks)
    }

    /// How many checks did not hold.
    pub(crate) fn failed_checks(&self) -> usize {
        self.checks().filter(|check| !check.held).count()
    }

    /// The outcome in a sentence.
    pub(crate) fn summary(&self) -> String {
        let (all, failed) = (self.checks().count(), self.failed_checks());
        let took = whole_ms(self.began.elapsed());
        match failed {
            0 => format!("\n{}: all {all} checks held, in {took} ms", self.scenario),
            _ => format!("\n{}: {failed} of {all} checks did NOT hold, in {took} ms", self.scenario),
        }
    }

    /// The outcome for machines.
    pub(crate) fn report(&self) -> Report<'_> {
        let failed_checks = self.failed_checks();
        Report {
            scenario: self.scenario,
            all_checks_held: failed_checks == 0,
            checks: self.checks().count(),
            failed_checks,
            took_ms: whole_ms(self.began.elapsed()),
            steps: &self.steps,
        }
    }
}

impl Step {
    /// Records whether `came` is what was expected.
    pub(crate) fn equal(&mut self, what: impl Into<String>, expected: impl Display, came: impl Display) {
        let (expected, came) = (expected.to_string(), came.to_string());
        self.check(what, expected == came, expected, came);
    }

    /// Records a claim that is more than an equality.
    pub(crate) fn check(&mut self, what: impl Into<String>, held: bool, expected: String, came: String) {
        self.checks.push(Check { what: what.into(), held, expected, came });
    }

    /// Records a measured time.
    pub(crate) fn measure(&mut self, what: impl Into<String>, time: Duration) {
        self.measured_ms.insert(what.into(), (time.as_secs_f64() * 10_000.0).round() / 10.0);
    }

    /// Records what others told.
    pub(crate) fn tell(&mut self, line: impl Into<String>) {
        self.told.push(line.into());
    }

    fn render(&self) -> String {
        let mut text = format!("{:>7} ms  {}  ({} ms)\n", self.at_ms, self.name, self.took_ms);
        for check in &self.checks {
            let Check { what, expected, came, .. } = check;
            text += &match check.held {
                true => format!("              ok      {what}: {came}\n"),
                false => format!("              FAILED  {what}: expected {expected}, came {came}\n"),
            };
        }
        for line in &self.told {
            text += &format!("              told    {line}\n");
        }
        for (what, ms) in &self.measured_ms {
            text += &format!("              time    {what}: {ms} ms\n");
        }
        text
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn a_check_that_fails_is_counted_and_the_story_goes_on() {
        let mut timeline = Timeline::new("test", false);
        timeline
            .step("one", async |step| {
                step.equal("sum", 4, 2 + 2);
                step.equal("difference", 1, 2 - 2);
                step.measure("nothing", Duration::from_micros(1234));
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(timeline.failed_checks(), 1);
        let report = serde_json::to_value(timeline.report()).unwrap();
        assert_eq!(report["all_checks_held"], false);
        assert_eq!(report["steps"][0]["checks"][1]["came"], "0");
        assert_eq!(report["steps"][0]["measured_ms"]["nothing"], 1.2);
        assert!(timeline.steps[0].render().contains("FAILED  difference: expected 1, came 0"));
    }

    #[tokio::test]
    async fn an_error_stops_the_story_and_is_a_failed_check() {
        let mut timeline = Timeline::new("test", false);
        let stopped = timeline.step("one", async |_| -> anyhow::Result<()> { bail!("no answer") }).await;
        assert!(stopped.is_err());
        assert_eq!(timeline.failed_checks(), 1);
        assert!(timeline.summary().contains("1 of 1 checks did NOT hold"), "{}", timeline.summary());
    }
}

//! The steps of staging and unstaging, by name: to see where the time goes, and to die between any two of them.
//!
//! A step is counted and timed when it is done, and only if it was needed: a volume that is connected already has
//! no `connected`, one with a file system no `formatted`. Undoing a failed stage takes unstaging's steps. The step
//! after which the process ends itself is for tests of the rule that the node plugin may be killed anywhere:
//! whatever it left half-done, the same request brought again has to complete or to undo.

use std::future::Future;
use std::time::Instant;

use rustix::process::{Signal, getpid, kill_process};
use state_machine::VolumeId;

use crate::metrics::Metrics;

/// One step of staging or unstaging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The controllers have said that the attachment stands.
    Permitted,
    /// The volume has become a device.
    Connected,
    /// It is known what is on the device.
    Probed,
    /// It was empty and has a file system now.
    Formatted,
    /// Its file system has been checked.
    Checked,
    /// The file system is mounted at the staging path.
    Mounted,
    /// Nothing is mounted at the staging path any more.
    Unmounted,
    /// Nobody was found to hold the device, and the connection has ended.
    Disconnected,
    /// The links to block targets are cleared away.
    Forgotten,
    /// The controllers know that the volume is not connected.
    Reported,
}

impl Step {
    /// All steps: those of staging in their order, then those of unstaging.
    pub const ALL: [Self; 10] = [
        Self::Permitted,
        Self::Connected,
        Self::Probed,
        Self::Formatted,
        Self::Checked,
        Self::Mounted,
        Self::Unmounted,
        Self::Disconnected,
        Self::Forgotten,
        Self::Reported,
    ];

    /// The step's name in metrics, logs and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Connected => "connected",
            Self::Probed => "probed",
            Self::Formatted => "formatted",
            Self::Checked => "checked",
            Self::Mounted => "mounted",
            Self::Unmounted => "unmounted",
            Self::Disconnected => "disconnected",
            Self::Forgotten => "forgotten",
            Self::Reported => "reported",
        }
    }

    /// Whether staging takes it; the others are unstaging's.
    pub fn is_of_stage(self) -> bool {
        match self {
            Self::Permitted
            | Self::Connected
            | Self::Probed
            | Self::Formatted
            | Self::Checked
            | Self::Mounted => true,
            Self::Unmounted | Self::Disconnected | Self::Forgotten | Self::Reported => false,
        }
    }

    /// The step of this name, or a sentence with all names.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|step| step.name() == name).ok_or_else(|| {
            format!("{name:?} is not a step; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Takes steps, times them, and ends the process after one if a test wants that.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    metrics: Metrics,
    die_after: Option<Step>,
}

impl Steps {
    pub(crate) fn new(metrics: Metrics, die_after: Option<Step>) -> Self {
        if let Some(step) = die_after {
            tracing::warn!(
                step = step.name(),
                "this node plugin is under test and will end itself after a step"
            );
        }
        Self { metrics, die_after }
    }

    /// Does `work`, which is `step` on `volume`. A step that fails is not done, and is not timed.
    pub(crate) async fn take<T, E>(
        &self,
        step: Step,
        volume: &VolumeId,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let done = work.await?;
        let took = begun.elapsed();
        self.metrics.step(step.name(), took);
        let duration_ms = took.as_secs_f64() * 1000.0;
        tracing::debug!(%volume, step = step.name(), duration_ms, "step done");
        if self.die_after == Some(step) {
            tracing::error!(%volume, step = step.name(), "ending itself with SIGKILL, as this test wants");
            kill_process(getpid(), Signal::KILL).ok();
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    #[test]
    fn every_step_is_listed_once_and_parses_by_its_name() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(Step::parse(step.name()), Ok(step));
            assert_eq!(Step::ALL.iter().position(|other| *other == step), Some(index));
        }
        let of_stage = Step::ALL.iter().take_while(|step| step.is_of_stage()).count();
        assert!(Step::ALL[of_stage..].iter().all(|step| !step.is_of_stage()), "staging's steps come first");
        let mistake = Step::parse("mount").unwrap_err();
        assert!(Step::ALL.iter().all(|step| mistake.contains(step.name())), "{mistake}");
    }

    #[tokio::test]
    async fn only_what_is_done_is_timed() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (steps, volume) = (Steps::new(metrics.clone(), None), VolumeId::parse("pvc-1").unwrap());
        steps.take(Step::Mounted, &volume, async { Ok::<_, ()>(()) }).await.unwrap();
        steps.take(Step::Checked, &volume, async { Err::<(), _>(()) }).await.unwrap_err();
        let text = metrics.render().unwrap();
        assert!(text.contains("rds_csi_node_step_duration_seconds_count{step=\"mounted\"} 1"), "{text}");
        assert!(!text.contains("checked"), "{text}");
    }
}

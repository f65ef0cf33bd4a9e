//! Findings said once: a log line when one appears, one when it is left with a reason, one when it is gone.

use state_machine::NodeId;

use super::plan::Finding;
use crate::metrics::Metrics;

/// What is amiss, as it was last said.
pub(super) struct Reports {
    node: NodeId,
    metrics: Metrics,
    standing: Vec<Report>,
    /// Why the last look came to nothing.
    unseen: Option<String>,
}

struct Report {
    finding: Finding,
    /// Why it was not mended.
    left: Option<String>,
}

impl Reports {
    pub(super) fn new(node: NodeId, metrics: Metrics) -> Self {
        let reports = Self { node, metrics, standing: Vec::new(), unseen: None };
        reports.count();
        reports
    }

    /// These are all there are.
    pub(super) fn found(&mut self, findings: &[Finding]) {
        let node = &self.node;
        if self.unseen.take().is_some() {
            tracing::info!(%node, "what is amiss here can be seen again");
        }
        self.standing.retain(|report| {
            let stands = findings.iter().any(|finding| finding.is_about_the_same(&report.finding));
            if !stands {
                tracing::info!(%node, kind = report.finding.kind(), finding = %report.finding, "no longer amiss");
            }
            stands
        });
        for finding in findings {
            let said = self.standing.iter_mut().find(|report| report.finding.is_about_the_same(finding));
            if said.as_ref().is_some_and(|report| report.finding == *finding) {
                continue;
            }
            tracing::warn!(%node, kind = finding.kind(), %finding, "amiss");
            let report = Report { finding: finding.clone(), left: None };
            match said {
                Some(said) => *said = report,
                None => {
                    if finding.is_stale_mount() {
                        self.metrics.stale_mount();
                    }
                    self.standing.push(report);
                }
            }
        }
        self.count();
    }

    /// This one is no more.
    pub(super) fn mended(&mut self, finding: &Finding) {
        tracing::info!(node = %self.node, kind = finding.kind(), %finding, "mended");
        self.standing.retain(|report| report.finding != *finding);
        self.count();
    }

    /// This one stays, for this reason.
    pub(super) fn left(&mut self, finding: &Finding, reason: String) {
        let Some(report) = self.standing.iter_mut().find(|report| report.finding == *finding) else { return };
        if report.left.as_ref() != Some(&reason) {
            tracing::warn!(node = %self.node, kind = finding.kind(), %finding, reason, "amiss, and left so");
            report.left = Some(reason);
        }
    }

    /// Nothing new is known, for this reason; what was amiss may still be.
    pub(super) fn unseen(&mut self, reason: String) {
        if self.unseen.as_ref() != Some(&reason) {
            tracing::warn!(node = %self.node, reason, "what is amiss here cannot be seen; nothing is touched");
            self.unseen = Some(reason);
        }
        self.count();
    }

    fn count(&self) {
        for kind in Finding::KINDS {
            let count = self.standing.iter().filter(|report| report.finding.kind() == kind).count();
            self.metrics.findings(kind, count);
        }
        self.metrics.findings("unseen", usize::from(self.unseen.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    fn foreign(name: &str) -> Finding {
        Finding::Foreign { name: name.to_owned() }
    }

    #[test]
    fn findings_are_counted_while_they_stand() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let mut reports = Reports::new(NodeId::parse("node-a").unwrap(), metrics.clone());
        let count = |kind: &str| {
            let line = format!("rds_csi_node_findings{{kind=\"{kind}\"}} ");
            let text = metrics.render().unwrap();
            text.lines().find_map(|found| found.strip_prefix(&line)).unwrap().to_owned()
        };
        reports.found(&[foreign("a"), foreign("b")]);
        assert_eq!(count("foreign_connection"), "2");
        reports.unseen("no answer".to_owned());
        assert_eq!((count("foreign_connection").as_str(), count("unseen").as_str()), ("2", "1"));
        reports.found(&[foreign("b")]);
        assert_eq!((count("foreign_connection").as_str(), count("unseen").as_str()), ("1", "0"));
        reports.left(&foreign("b"), "held".to_owned());
        reports.mended(&foreign("b"));
        assert_eq!(count("foreign_connection"), "0");
    }

    #[test]
    fn a_stale_mount_is_counted_once() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let mut reports = Reports::new(NodeId::parse("node-a").unwrap(), metrics.clone());
        let volume = state_machine::VolumeId::parse("pvc-1").unwrap();
        for elsewhere in [vec!["/pod".into()], Vec::new(), Vec::new()] {
            let (volume, path) = (volume.clone(), "/staging".into());
            reports.found(&[Finding::DeadStaging { volume, path, elsewhere }]);
        }
        let text = metrics.render().unwrap();
        assert!(text.contains("rds_csi_stale_mounts_detected_total 1\n"), "{text}");
    }
}

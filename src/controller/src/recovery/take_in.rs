//! Volumes that the ledger does not know, from the appliance and from Kubernetes' objects: `ctl adopt` and `ctl rebuild`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proto::operator::v1::{TakeInPart, TakeInReply, TakeInRow};
use state_machine::{Command, NodeId, State, VolumeId, cut_text};
use tonic::{Code, Status, Streaming};

use super::judge::{Facts, Row, Sights, Verdict, judge};
use super::objects::Objects;
use super::{Recovery, collect, unreached};

impl Recovery {
    /// Judges, and takes in what may be if the first part says so, volume by volume. Beginning again is harmless.
    pub(crate) async fn take_in(
        &self,
        mut parts: Streaming<TakeInPart>,
        who: &str,
        deadline: Instant,
    ) -> Result<TakeInReply, Status> {
        let first = parts.message().await?.ok_or_else(|| Status::invalid_argument("there are no objects"))?;
        let (apply, rebuild) = (first.apply, first.rebuild);
        let file = collect(&mut parts, first.data, |part| part.data).await?;
        let objects = Objects::parse(&file, csi::DRIVER_NAME);
        let objects = objects.map_err(|why| Status::invalid_argument(format!("the objects: {why}")))?;
        let state = self.state(deadline).await?;
        let foreign = self.foreign_term(&state).await?;
        let disks = self.backend.list().await.map_err(|error| unreached(&error))?;
        let sights = self.sights(&objects, &disks, rebuild, deadline).await?;
        let rows = judge(&Facts {
            disks: &disks,
            objects: &objects,
            sights: &sights,
            state: &state,
            nqn_prefix: &self.nqn_prefix,
            defaults: &self.defaults,
            rebuild,
        });
        if apply && rebuild {
            self.take_over(&state, foreign, deadline).await?;
        }
        let from = cut_text(format!("the appliance and Kubernetes, at the word of {who}"));
        let mut shown = Vec::new();
        for row in rows {
            shown.push(self.carry_out(row, apply, &from, deadline).await?);
        }
        let warnings = warnings(foreign, rebuild);
        Ok(TakeInReply { applied: apply, rows: shown, warnings })
    }

    /// Shuts the lost cluster out. A ledger of the first epoch may have the very terms of the lost one, which the
    /// appliance cannot tell apart: it is raised even if nothing there is above it.
    async fn take_over(&self, state: &State, foreign: Option<u64>, deadline: Instant) -> Result<(), Status> {
        let own = state.epoch().saturating_add(self.leader.replica.status().term);
        let above = match foreign {
            Some(highest) => highest,
            None if state.epoch() == 0 => own,
            None => return Ok(()),
        };
        tracing::warn!(above, "taking the appliance over from a cluster that was lost");
        self.raise_epoch(above, deadline).await
    }

    async fn carry_out(
        &self,
        row: Row,
        apply: bool,
        from: &str,
        deadline: Instant,
    ) -> Result<TakeInRow, Status> {
        let Row { id, verdict, size_bytes, nodes, mut reasons, warnings } = row;
        let verdict = match verdict {
            Verdict::Known => "known",
            Verdict::Refused => "refused",
            Verdict::Adopt(_) if !apply => "adopt",
            Verdict::Adopt(volume) => {
                match self.decide(Command::AdoptVolume { volume, from: from.to_owned() }, deadline).await {
                    Ok(()) => "adopted",
                    // Without a quorum nothing more can be said of any.
                    Err(status) if status.code() == Code::Unavailable => return Err(status),
                    Err(status) => {
                        reasons.push(status.message().to_owned());
                        "refused"
                    }
                }
            }
        };
        let node_ids = nodes.iter().map(ToString::to_string).collect();
        Ok(TakeInRow { volume_id: id, verdict: verdict.to_owned(), size_bytes, node_ids, reasons, warnings })
    }

    /// What the nodes say of every volume on the appliance: those that report it, and those that Kubernetes names.
    async fn sights(
        &self,
        objects: &Objects,
        disks: &[backend::Disk],
        rebuild: bool,
        deadline: Instant,
    ) -> Result<Sights, Status> {
        let mut sights = Sights::new();
        for disk in disks {
            let volume = &disk.volume;
            let mut told = self.asked(volume, &[], deadline).await?;
            let named: BTreeSet<NodeId> = objects
                .volumes
                .iter()
                .filter(|v| v.csi().is_some_and(|csi| csi.volume_handle == volume.as_str()))
                .flat_map(|v| objects.attachments.iter().filter(move |a| a.is_of(v)))
                .filter_map(|attachment| NodeId::parse(&attachment.spec.node_name).ok())
                .filter(|node| !told.contains_key(node))
                .collect();
            if rebuild && !named.is_empty() {
                let named: Vec<NodeId> = named.into_iter().collect();
                told.extend(self.asked(volume, &named, deadline).await?);
            }
            sights.insert(volume.clone(), told);
        }
        Ok(sights)
    }

    async fn asked(
        &self,
        volume: &VolumeId,
        nodes: &[NodeId],
        deadline: Instant,
    ) -> Result<BTreeMap<NodeId, crate::sessions::Told>, Status> {
        let told = self.leader.sights(volume, nodes, false, deadline).await;
        Ok(told
            .map_err(|why| Status::unavailable(format!("the nodes' sessions: {why}")))?
            .into_iter()
            .collect())
    }
}

fn warnings(foreign: Option<u64>, rebuild: bool) -> Vec<String> {
    let word = match (foreign, rebuild) {
        (None, _) => return Vec::new(),
        (Some(term), true) => format!(
            "the appliance is in the hands of another cluster (term {term}): with --apply this one takes it over, and \
             the other can change nothing there any more"
        ),
        (Some(term), false) => format!(
            "the appliance is in the hands of another cluster (term {term}): this one can change nothing there. If \
             the other was lost, use `ctl rebuild`; if not, this is the wrong appliance"
        ),
    };
    vec![word]
}

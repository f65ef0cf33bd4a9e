//! Giving leadership away on purpose: a successor that is asked is there in milliseconds, one that has to notice the
//! leader's death takes an election.
//!
//! The leader takes no more commands from the moment that it asks, and no longer shows that it lives: if the successor
//! does not take over, any voter does, as after a death. So a hand-over that was begun ends by itself as long as there
//! is a quorum, and one without an answering voter is not begun.

use std::time::{Duration, Instant};

use openraft::ServerState;
use proto::peer::v1::HandOverRequest;
use proto::peer::v1::peer_client::PeerClient;
use tls::Tls;

use crate::consensus::Metrics;
use crate::peers;
use crate::replica::Inner;
use crate::status;
use crate::tls::TlsFiles;

/// How long another process may wait for a hand-over; the replica itself gives up a little earlier, so that it can say
/// why.
const ASK_TIMEOUT: Duration = Duration::from_millis(10_000);
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Pause before it is looked again for a voter that answers.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    /// Gives leadership away, if it is here; says after `limit` why it still is.
    pub(crate) async fn hand_over(&self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        loop {
            let metrics = self.metrics();
            if !leads(&metrics) {
                return Ok(());
            }
            if metrics.membership_config.voter_ids().eq([self.id]) {
                return Err("this replica is the only one that votes, nobody can take over".to_owned());
            }
            let members = status::members(&metrics, &self.config.timing);
            if let Some(successor) = status::successor(self.id, &members) {
                tracing::info!(replica = self.id, successor, "handing leadership over");
                let transfer = self
                    .consensus
                    .ask(move |raft| async move { raft.trigger().transfer_leader(successor).await });
                transfer.await.map_err(|_| "this replica has stopped".to_owned())?;
                return self.until_another_leads(end).await;
            }
            if Instant::now() + LOOK_PAUSE >= end {
                return Err(format!(
                    "this replica leads, and no other voter answered it within {} ms",
                    limit.as_millis()
                ));
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn until_another_leads(&self, end: Instant) -> Result<(), String> {
        let elsewhere = |metrics: &Metrics| metrics.current_leader.is_some_and(|leader| leader != self.id);
        match tokio::time::timeout_at(end.into(), self.metrics_reach(elsewhere)).await {
            Ok(_) => Ok(()),
            // It gave up its own; who is next is not its business any more.
            Err(_) if !leads(&self.metrics()) => Ok(()),
            Err(_) => Err("nobody took the leadership over in time".to_owned()),
        }
    }
}

fn leads(metrics: &Metrics) -> bool {
    metrics.state == ServerState::Leader
}

/// Asks the replica that serves at `address` to give its leadership away, with a replica's certificate. Done: another
/// one leads, or it did not lead; else the reason, after 10 s at the latest.
pub async fn ask_to_hand_over(files: TlsFiles, address: &str) -> Result<(), String> {
    let tls = Tls::read(files.into()).map_err(|error| error.to_string())?;
    let channel = peers::open(&tls, address).map_err(|error| error.to_string())?;
    let timeout_ms = u64::try_from((ASK_TIMEOUT - ANSWER_MARGIN).as_millis()).unwrap_or(u64::MAX);
    let mut client = PeerClient::new(channel);
    match tokio::time::timeout(ASK_TIMEOUT, client.hand_over(HandOverRequest { timeout_ms })).await {
        Ok(Ok(reply)) => {
            let refused = reply.into_inner().refused;
            if refused.is_empty() { Ok(()) } else { Err(refused) }
        }
        Ok(Err(status)) => {
            let cause = std::error::Error::source(&status).map(ToString::to_string);
            Err(format!(
                "{address} does not answer: {}",
                cause.unwrap_or_else(|| status.message().to_owned())
            ))
        }
        Err(_) => Err(format!("{address} does not answer within {} ms", ASK_TIMEOUT.as_millis())),
    }
}

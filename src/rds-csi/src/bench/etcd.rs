//! The same attach on etcd: a key that must not exist is put in one transaction, and deleted again.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tokio::task::JoinSet;

use super::samples::Samples;

/// Under this prefix keys are made and deleted.
const PREFIX: &str = "rds-csi-bench/";
/// About what one attachment takes in our log, in bytes.
const VALUE_BYTES: usize = 128;

/// Each client attaches and detaches its own key for `seconds`.
pub(super) async fn attaches(
    endpoints: &[String],
    clients: usize,
    seconds: u64,
) -> anyhow::Result<[Samples; 2]> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for index in 0..clients {
        let client = Client::connect(endpoints, None).await.context("cannot connect to etcd")?;
        tasks.spawn(attach_until(client, format!("{PREFIX}{index}"), until));
    }
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (some, others) = ended??;
        attached.extend(some);
        detached.extend(others);
    }
    let elapsed = begun.elapsed();
    Ok([Samples::within(attached, elapsed), Samples::within(detached, elapsed)])
}

async fn attach_until(
    mut client: Client,
    key: String,
    until: Instant,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    client.delete(key.as_str(), None).await.context("cannot begin anew")?;
    while Instant::now() < until {
        let begun = Instant::now();
        let absent = Compare::version(key.as_str(), CompareOp::Equal, 0);
        let put = TxnOp::put(key.as_str(), vec![0; VALUE_BYTES], None);
        let answer =
            client.txn(Txn::new().when([absent]).and_then([put])).await.context("an attach failed")?;
        ensure!(answer.succeeded(), "somebody else uses {key}");
        attached.push(begun.elapsed());
        let begun = Instant::now();
        client.delete(key.as_str(), None).await.context("a detach failed")?;
        detached.push(begun.elapsed());
    }
    Ok((attached, detached))
}

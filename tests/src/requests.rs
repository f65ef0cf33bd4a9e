//! CSI requests as the sidecars send them, and their patience.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateVolumeResponse,
    VolumeCapability,
};
use rds_csi::dev::requests;
pub use rds_csi::dev::requests::{create, delete, rwx_block, unpublish, within};
use tonic::{Code, Status};

/// One MiB, in bytes.
pub const MIB: i64 = 1 << 20;

/// How long a test insists on an answer that has to come, in milliseconds: several elections and a slow machine.
pub const PATIENCE_MS: u64 = 30_000;

/// Between two attempts, in milliseconds.
const RETRY_MS: u64 = 50;

/// A file system on one node.
pub fn mounted() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// The id of a volume that was made.
pub fn volume_id(answer: CreateVolumeResponse) -> String {
    answer.volume.unwrap_or_default().volume_id
}

/// Asks for the volume to have `size_bytes`.
pub fn expand(volume_id: &str, size_bytes: i64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: volume_id.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: size_bytes, limit_bytes: 0 }),
        ..Default::default()
    }
}

/// Asks for the RWX block volume on `node_id`.
pub fn publish(volume_id: &str, node_id: &str) -> ControllerPublishVolumeRequest {
    requests::publish(volume_id, node_id, &requests::Context::new())
}

/// Whether a sidecar would come again with the same request.
pub fn is_passing(status: &Status) -> bool {
    const PASSING: [Code; 4] = [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded, Code::Cancelled];
    // A status with a source is of a connection that broke under the request: nothing is known of it.
    PASSING.contains(&status.code()) || std::error::Error::source(status).is_some()
}

/// Calls again and again until it works, as the sidecars do; an error that will not pass ends it.
pub async fn insist<T, F>(what: &str, call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    insist_for(PATIENCE_MS, what, call).await
}

/// The same with another patience.
pub async fn insist_for<T, F>(patience_ms: u64, what: &str, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let give_up = Instant::now() + Duration::from_millis(patience_ms);
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) if !is_passing(&status) => bail!("{what}: {status}"),
            Err(status) if Instant::now() >= give_up => {
                bail!("{what}: still after {patience_ms} ms: {status}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(RETRY_MS)).await,
        }
    }
}

/// Fails unless the answer is UNAVAILABLE: from the driver, in time, which the caller's own limit would not be.
pub fn expect_unavailable<T: Debug>(what: &str, answer: Result<T, Status>) -> Result<()> {
    let code = answer.as_ref().err().map(Status::code);
    ensure!(code == Some(Code::Unavailable), "{what}: UNAVAILABLE was expected: {answer:?}");
    Ok(())
}

/// Looks again and again until `look` finds something; what was wrong last is in the error.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    eventually_within(PATIENCE_MS, what, look).await
}

/// The same with another patience.
pub async fn eventually_within<T>(
    patience_ms: u64,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let give_up = Instant::now() + Duration::from_millis(patience_ms);
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= give_up => {
                return Err(error.context(format!("{what}: not after {patience_ms} ms")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(RETRY_MS)).await,
        }
    }
}

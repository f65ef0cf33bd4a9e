//! openraft's own suite for log stores and state machines.

// A step that fails here fails the test.
#![allow(clippy::unwrap_used)]

use openraft::testing::log::{StoreBuilder, Suite};
use storage::{LogStore, MachineStore, Store, TypeConfig};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, MachineStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, MachineStore), openraft::StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Ok((dir, store.log, store.machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

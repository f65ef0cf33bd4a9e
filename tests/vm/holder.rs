//! A process on a node that holds something.

use anyhow::Result;
use tests::vm::{Guest, VmLab};

/// What the agent calls it. A node has one at a time.
const HOLDER: &str = "holder";

/// How long it may take to have what it holds, in milliseconds.
const HELD_MS: u64 = 10_000;

/// It holds until it is released.
#[derive(Debug)]
pub(crate) struct Holder {
    guest: Guest,
    pid: String,
}

impl Holder {
    /// One that has the file or device `path` open.
    pub(crate) async fn of(lab: &VmLab, node: &str, path: &str) -> Result<Self> {
        Self::start(lab, node, &["sh", "-euc", "exec 3<\"$0\"; exec sleep 10000", path]).await
    }

    /// Any program that turns into `sleep` once it holds.
    pub(crate) async fn start(lab: &VmLab, node: &str, argv: &[&str]) -> Result<Self> {
        let guest = lab.guest(node)?;
        guest.spawn(HOLDER, argv).await?;
        let holds = async || guest.run(&["pidof", "sleep"]).await;
        let pid = guest.eventually("the holder holds", HELD_MS, holds).await?;
        Ok(Self { guest, pid })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> &str {
        &self.pid
    }

    /// Ends it.
    pub(crate) async fn release(self) -> Result<()> {
        self.guest.kill(HOLDER).await
    }
}

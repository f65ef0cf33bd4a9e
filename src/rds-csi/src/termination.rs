//! How a process is asked to end.
//!
//! The first SIGTERM or SIGINT cancels a token, and whoever holds it winds down; a second one ends the process at
//! once. A process that was started with `--exit-with-parent` also ends, at once, when its standard input does:
//! that pipe closes even if the parent was killed with SIGKILL.

use std::io::{self, Read};
use std::thread;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: what a shell shows for a process that died of SIGINT.
const STATUS_INTERRUPTED: i32 = 130;
/// Exit status of a process whose parent went away.
const STATUS_ORPHANED: i32 = 4;

/// A token that the first SIGTERM or SIGINT cancels; the second ends the process.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, "ending; a second signal ends at once");
    token.cancel();
    let name = next().await;
    tracing::warn!(signal = name, "second signal");
    std::process::exit(STATUS_INTERRUPTED);
}

/// Ends this process when its standard input reaches its end.
pub fn with_parent() {
    thread::spawn(|| {
        let mut buffer = [0; 64];
        let mut input = io::stdin().lock();
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {}
            }
        }
        std::process::exit(STATUS_ORPHANED);
    });
}

//! What the disk itself takes: every publish waits for at least two of these, on a quorum.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::samples::Samples;

/// How often the disk is asked.
const ROUNDS: usize = 500;
/// What is appended each time, in bytes.
const BLOCK_BYTES: usize = 4096;

/// Appends a block to a file in `directory` and waits for fdatasync, again and again.
pub(super) fn fdatasync(directory: &Path) -> anyhow::Result<Samples> {
    let path = directory.join("fdatasync.probe");
    let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let begun = Instant::now();
    let mut durations = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        file.write_all(&[0; BLOCK_BYTES]).context("cannot write the probe")?;
        file.sync_data().context("cannot sync the probe")?;
        durations.push(start.elapsed());
    }
    let samples = Samples::within(durations, begun.elapsed());
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(samples)
}

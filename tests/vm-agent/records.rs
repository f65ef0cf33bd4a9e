//! Records that are written one after the other, each acknowledged once it is durable, and looked for later.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of a record, in bytes: a block of what they are written to.
const RECORD_BYTES: usize = 4096;

/// The record `number`: every eight bytes tell which one it is, and where in it they are.
fn record(number: u64) -> Vec<u8> {
    let words = (0..RECORD_BYTES as u64 / 8).map(|word| number.wrapping_mul(RECORD_BYTES as u64) + word);
    words.flat_map(u64::to_le_bytes).collect()
}

fn offset(number: u64) -> u64 {
    number * RECORD_BYTES as u64
}

/// Writes `count` records, and prints the number of each once the device says that it is durable.
pub(crate) fn write(path: &Path, count: u64) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let mut output = io::stdout().lock();
    for number in 0..count {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("record {number}: {error}"));
        file.write_all_at(&record(number), offset(number)).map_err(named)?;
        file.sync_data().map_err(named)?;
        writeln!(output, "{number}")?;
        output.flush()?;
    }
    Ok(())
}

/// Fails unless the first `count` records are there as they were written.
pub(crate) fn check(path: &Path, count: u64) -> io::Result<()> {
    let file = File::open(path)?;
    let mut found = vec![0; RECORD_BYTES];
    for number in 0..count {
        file.read_exact_at(&mut found, offset(number))?;
        if found != record(number) {
            return Err(io::Error::other(format!("record {number} of {count} is not as it was written")));
        }
    }
    println!("{count} records are as they were written");
    Ok(())
}

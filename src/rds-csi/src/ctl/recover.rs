//! `ctl backup`, `restore`, `adopt` and `rebuild`: files to and from the controllers, which understand them.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::operator::v1::{
    BackupRequest, FilePart, ListVolumesReply, RestorePart, RestoreReply, TakeInPart, TakeInReply,
};

use super::access::Access;
use super::{call, render};
use crate::failure::Failure;
use crate::table::Table;
use crate::units;

/// Stands for standard input or output.
const STANDARD: &str = "-";
/// Largest file, in bytes: the controllers take no larger ones.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Largest part of a file on its way, in bytes.
const PART_BYTES: usize = 1 << 20;
/// How long a restore, an adoption or a rebuild is given at least, over all replicas: thousands of entries are written.
const LEAST_DEADLINE: Duration = Duration::from_secs(600);

/// Where the copy goes.
#[derive(Debug, Clone, Args)]
pub(super) struct Backup {
    /// The file to write, or - for standard output
    file: String,
}

/// What is restored.
#[derive(Debug, Clone, Args)]
pub(super) struct Restore {
    /// The backup, or - for standard input
    file: String,
    /// Only show what would come
    #[arg(long)]
    dry_run: bool,
}

/// What is taken in.
#[derive(Debug, Clone, Args)]
pub(super) struct TakeIn {
    /// What `kubectl get pv,volumeattachments -o json` printed just now, or - for standard input
    #[arg(long, value_name = "FILE")]
    from_json: String,
    /// Do it
    #[arg(long)]
    apply: bool,
}

impl Backup {
    pub(super) async fn carry_out(&self, access: &Access, deadline: Duration) -> Result<String, Failure> {
        let ask = async |client: &mut call::Client| client.backup(BackupRequest {}).await;
        let mut parts = call::ask(access, deadline, ask).await?;
        let mut file = Vec::new();
        while let Some(FilePart { data }) = parts.message().await.map_err(|status| {
            Failure::Unavailable(format!("the backup broke off: {}", call::describe(&status)))
        })? {
            file.extend(data);
        }
        // Without its last line it is not whole; what it says, the restore checks.
        if !file.ends_with(b"\n") || !last_line(&file).starts_with(b"sha256 ") {
            return Err(Failure::Unavailable("the backup broke off before its end; try again".to_owned()));
        }
        if self.file == STANDARD {
            io::stdout().write_all(&file).context("cannot write the backup")?;
            return Ok(String::new());
        }
        write_durably(Path::new(&self.file), &file)
            .with_context(|| format!("cannot write the backup to {}", self.file))?;
        Ok(format!("{} bytes written to {}\n", file.len(), self.file))
    }
}

fn last_line(file: &[u8]) -> &[u8] {
    let text = file.strip_suffix(b"\n").unwrap_or(file);
    text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// Whole or not at all: an older backup under the name stays until the new one is on disk.
fn write_durably(path: &Path, file: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(file)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    fs::File::open(directory)?.sync_all()
}

fn read(name: &str) -> Result<Vec<u8>, Failure> {
    let mut file = Vec::new();
    let source: Box<dyn Read> = if name == STANDARD {
        Box::new(io::stdin().lock())
    } else {
        Box::new(fs::File::open(name).with_context(|| format!("cannot read {name}"))?)
    };
    source.take(MAX_FILE_BYTES + 1).read_to_end(&mut file).with_context(|| format!("cannot read {name}"))?;
    if file.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::Usage(vec![format!("{name} has more than {MAX_FILE_BYTES} bytes")]));
    }
    Ok(file)
}

impl Restore {
    pub(super) async fn carry_out(
        &self,
        access: &Access,
        deadline: Duration,
    ) -> Result<RestoreReply, Failure> {
        let apply = !self.dry_run;
        let file = read(&self.file)?;
        let first = RestorePart { apply, data: Vec::new() };
        let rest = file.chunks(PART_BYTES).map(|data| RestorePart { apply, data: data.to_vec() });
        let parts: Vec<RestorePart> = [first].into_iter().chain(rest).collect();
        let ask = async |client: &mut call::Client| client.restore(tokio_stream::iter(parts.clone())).await;
        call::ask(access, deadline.max(LEAST_DEADLINE), ask).await
    }
}

impl TakeIn {
    pub(super) async fn carry_out(
        &self,
        access: &Access,
        deadline: Duration,
        rebuild: bool,
    ) -> Result<TakeInReply, Failure> {
        let apply = self.apply;
        let file = read(&self.from_json)?;
        let first = TakeInPart { apply, rebuild, data: Vec::new() };
        let rest = file.chunks(PART_BYTES).map(|data| TakeInPart { apply, rebuild, data: data.to_vec() });
        let parts: Vec<TakeInPart> = [first].into_iter().chain(rest).collect();
        let ask = async |client: &mut call::Client| client.take_in(tokio_stream::iter(parts.clone())).await;
        call::ask(access, deadline.max(LEAST_DEADLINE), ask).await
    }
}

/// What was restored, or would be.
pub(super) fn restored(reply: &RestoreReply) -> String {
    let head = if reply.applied { "Restored" } else { "Nothing was changed. A restore brings" };
    let volumes = ListVolumesReply { volumes: reply.volumes.clone() };
    format!(
        "{head} {} volumes and {} nodes, of cluster {} when its ledger was {} old (sha256 {}).\n\
         Every attachment counts as connected until its node says otherwise.\n\n{}",
        reply.volumes.len(),
        reply.node_ids.len(),
        reply.cluster_id,
        units::span(reply.ledger_time_ms),
        reply.sha256,
        render::volumes(&volumes)
    )
}

/// What was taken in, or would be, and what not and why.
pub(super) fn taken_in(reply: &TakeInReply) -> String {
    let mut table = Table::new(["VOLUME", "SIZE", "VERDICT", "NODES", "WHY NOT", "WARNINGS"]);
    for row in &reply.rows {
        table.row([
            row.volume_id.clone(),
            units::size(row.size_bytes),
            row.verdict.clone(),
            row.node_ids.join(", "),
            row.reasons.join("; "),
            row.warnings.join("; "),
        ]);
    }
    let warnings: String = reply.warnings.iter().map(|warning| format!("Warning: {warning}\n")).collect();
    let foot =
        if reply.applied { "" } else { "\nNothing was changed; --apply takes in what says `adopt`.\n" };
    format!("{warnings}{}{foot}", table.render())
}

#[cfg(test)]
mod tests {
    use proto::operator::v1::TakeInRow;

    use super::*;

    #[test]
    fn a_backup_replaces_an_older_one_and_only_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.backup");
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a temporary file was left");
        assert!(write_durably(Path::new("/nonexistent/ledger.backup"), b"three").is_err());
    }

    #[test]
    fn the_table_says_what_is_refused_and_that_nothing_was_done() {
        let row = TakeInRow {
            volume_id: "pvc-1".to_owned(),
            verdict: "refused".to_owned(),
            reasons: vec!["no slot".to_owned(), "two PVs".to_owned()],
            ..TakeInRow::default()
        };
        let reply = TakeInReply { applied: false, rows: vec![row], warnings: vec!["careful".to_owned()] };
        let text = taken_in(&reply);
        assert!(text.starts_with("Warning: careful\n") && text.contains("no slot; two PVs"), "{text}");
        assert!(text.contains("Nothing was changed"), "{text}");
        assert!(!taken_in(&TakeInReply { applied: true, ..reply }).contains("Nothing was changed"));
    }
}

//! `ctl orphans`: what is on the appliance and nobody's.

use proto::operator::v1::{ListOrphansReply, Orphan};

use crate::table::Table;
use crate::units;

/// The leader's answer as a table, and what becomes of what may be removed.
pub(super) fn render(reply: &ListOrphansReply) -> String {
    let mut table =
        Table::new(["VOLUME", "FORM", "FILE", "SIZE", "EXPORTED", "SEEN FOR", "VERDICT", "REASON"]);
    for orphan in &reply.orphans {
        let Orphan { volume_id, form, file_path, verdict, reason, .. } = orphan;
        table.row([
            volume_id.clone(),
            form.clone(),
            file_path.clone(),
            orphan.size_bytes.map(units::size).unwrap_or_default(),
            if orphan.exported { "yes" } else { "no" }.to_owned(),
            units::span(orphan.seen_for_ms),
            verdict.clone(),
            reason.clone(),
        ]);
    }
    let removal = match reply.removal.as_str() {
        "off" => "Nothing is removed: orphans.enabled is not set.",
        "dry run" => "Nothing is removed: it is a dry run (orphans.dry_run).",
        _ => "What is removable is removed at the leader's next pass.",
    };
    format!("{}{removal}\n", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_stays_and_why() {
        let orphan = Orphan {
            volume_id: "pvc-1".to_owned(),
            file_path: "/pool/pvc-1.img".to_owned(),
            form: "disk".to_owned(),
            size_bytes: Some(1 << 30),
            exported: true,
            seen_for_ms: 61_000,
            verdict: "kept".to_owned(),
            reason: "connected on node-a".to_owned(),
        };
        let expected = "\
VOLUME  FORM  FILE             SIZE   EXPORTED  SEEN FOR   VERDICT  REASON
pvc-1   disk  /pool/pvc-1.img  1 GiB  yes       1 min 1 s  kept     connected on node-a
Nothing is removed: it is a dry run (orphans.dry_run).
";
        let reply = ListOrphansReply { orphans: vec![orphan], removal: "dry run".to_owned() };
        assert_eq!(render(&reply), expected);
    }
}

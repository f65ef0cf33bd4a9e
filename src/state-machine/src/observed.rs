//! What a proposer saw outside the ledger. It goes into the command, so that a replay never depends on who looked.

use serde::{Deserialize, Serialize};

/// Longest text of a proposer's own choice that the ledger keeps, in characters.
pub const MAX_TEXT_CHARS: usize = 256;

/// The beginning of `text`, as much of it as the ledger keeps.
pub fn cut_text(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
    }
    text
}

/// What the proposer saw of the VM that uses a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmiObservation {
    /// Nothing is known: no Kubernetes, no VMI, or not read yet.
    #[default]
    Unknown,
    /// A VMI uses the volume's claim and KubeVirt has an unfinished migration of it.
    Migrating,
    /// A VMI uses the volume's claim and KubeVirt has no unfinished migration of it.
    NotMigrating,
}

/// What the proposer of a publish saw; by default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The VM that uses the volume.
    pub vmi: VmiObservation,
    /// The pods that use the volume's claim, in a sentence, if they belong to more than one VM.
    pub other_users: Option<String>,
    /// The VM that the volume is published for.
    pub vm: Option<String>,
    /// Whether the volumes of one VM are attached one after the other.
    pub one_publish_per_vm: bool,
    /// The least timeout of a migration that this starts: KubeVirt's own limit for the VM.
    pub least_timeout_seconds: Option<u32>,
}

impl Observed {
    /// The same, with texts that fit into a log entry.
    pub fn bounded(self) -> Self {
        Self { other_users: self.other_users.map(cut_text), vm: self.vm.map(cut_text), ..self }
    }
}

/// Why a node is known to be off, though it does not say so itself (DESIGN.md, "Proof", c to e).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffProof {
    /// Kubernetes has it tainted out-of-service.
    OutOfService,
    /// Its Node object was deleted, and nothing was heard from it for long enough.
    NodeDeleted,
    /// A person says so.
    Operator {
        /// The name in that person's certificate.
        name: String,
    },
}

impl OffProof {
    /// Who says so, and what, for the record.
    pub fn words(&self) -> (String, String) {
        let kubernetes = |says: &str| ("Kubernetes".to_owned(), format!("the node {says}"));
        match self {
            Self::OutOfService => kubernetes("is tainted out-of-service"),
            Self::NodeDeleted => kubernetes("was deleted, and nothing was heard from it since"),
            Self::Operator { name } => {
                let who = cut_text(format!("operator {name}"));
                let evidence = cut_text(format!("{who} says that the node is off"));
                (who, evidence)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = cut_text("ü".repeat(MAX_TEXT_CHARS + 1));
        assert_eq!((cut.chars().count(), cut.len()), (MAX_TEXT_CHARS, 2 * MAX_TEXT_CHARS));
        assert_eq!(cut_text("short".to_owned()), "short");

        let long = || Some("x".repeat(5_000));
        let seen = Observed { other_users: long(), vm: long(), ..Observed::default() }.bounded();
        assert_eq!(seen.other_users.map(|text| text.len()), Some(MAX_TEXT_CHARS));
        assert_eq!(seen.vm.map(|text| text.len()), Some(MAX_TEXT_CHARS));
        let (who, evidence) = OffProof::Operator { name: "x".repeat(5_000) }.words();
        assert_eq!((who.len(), evidence.len()), (MAX_TEXT_CHARS, MAX_TEXT_CHARS));
    }
}

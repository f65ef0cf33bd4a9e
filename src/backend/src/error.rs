//! Why an appliance did not do what it was asked.

use thiserror::Error;

/// Why an appliance did not do what it was asked. A caller branches on the variant; the words are for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackendError {
    /// The pool has no room.
    #[error("the appliance has not enough space")]
    Full,
    /// The appliance cannot be reached, its answer is lost or makes no sense: what it did is unknown.
    #[error("the appliance is unavailable: {reason}")]
    Unavailable {
        /// What went wrong.
        reason: String,
    },
    /// A later leader has taken over: this instance must not change anything any more.
    #[error("the appliance has accepted term {highest}, which is later than ours")]
    StaleTerm {
        /// The highest term that the appliance has accepted.
        highest: u64,
    },
    /// The disk is in use on the appliance; another try may succeed.
    #[error("the appliance says that the disk is in use: {words}")]
    Busy {
        /// The appliance's words.
        words: String,
    },
    /// What exists under the volume's name is not what was asked for; nothing was changed.
    #[error("{reason}")]
    Conflict {
        /// What differs.
        reason: String,
    },
    /// The appliance refused, or the request cannot be made at all.
    #[error("the appliance refused: {words}")]
    Rejected {
        /// The appliance's words, or ours where it was not asked.
        words: String,
    },
}

impl BackendError {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    pub(crate) fn conflict(reason: impl Into<String>) -> Self {
        Self::Conflict { reason: reason.into() }
    }

    pub(crate) fn rejected(words: impl Into<String>) -> Self {
        Self::Rejected { words: words.into() }
    }
}

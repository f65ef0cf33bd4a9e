//! Why the program ends without success, and what its caller sees of it.

use std::fmt;

/// The program's own exit status for flags and settings that are wrong; clap uses the same.
const STATUS_USAGE: u8 = 2;
const STATUS_FAILED: u8 = 1;
const STATUS_UNAVAILABLE: u8 = 3;

/// Why the program ends without success.
#[derive(Debug)]
pub enum Failure {
    /// Flags or settings are wrong: every mistake that was found. Exit status 2.
    Usage(Vec<String>),
    /// Nobody answered, or there is no quorum: try again. Exit status 3.
    Unavailable(String),
    /// Everything else. Exit status 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => STATUS_USAGE,
            Self::Unavailable(_) => STATUS_UNAVAILABLE,
            Self::Failed(_) => STATUS_FAILED,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(mistakes) => f.write_str(&mistakes.join("\n")),
            Self::Unavailable(reason) => f.write_str(reason),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_status() {
        assert_eq!(Failure::Usage(vec!["a".to_owned(), "b".to_owned()]).exit_status(), 2);
        assert_eq!(Failure::Unavailable(String::new()).exit_status(), 3);
        assert_eq!(Failure::from(anyhow::anyhow!("x")).exit_status(), 1);
        assert_eq!(Failure::Usage(vec!["a".to_owned(), "b".to_owned()]).to_string(), "a\nb");
    }
}

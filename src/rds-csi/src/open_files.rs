//! How many files a process may have open.
//!
//! A connection is one of them, and a leader has one for each node. The soft limit is commonly 1,024, for the sake
//! of programs that use select(2); ours does not.

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of this process, and of those that it starts, as far as it goes; what it is then, if it is limited.
pub(crate) fn allow_all() -> anyhow::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")?;
    Ok(limit.maximum)
}

/// As [`allow_all`], and `wanted` have to be allowed.
pub(crate) fn allow(wanted: u64) -> anyhow::Result<()> {
    if let Some(most) = allow_all()? {
        ensure!(most >= wanted, "{wanted} open files are needed, and {most} is the limit (ulimit -Hn)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_and_what_is_wanted_has_to_fit() {
        let most = allow_all().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, limit.maximum), (most, most));
        assert!(allow(1).is_ok());
        if let Some(most) = most {
            assert!(allow(most + 1).unwrap_err().to_string().contains("ulimit"));
        }
    }
}

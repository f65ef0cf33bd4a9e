//! Where the programs under test are: built before the tests run, in the directory that these came from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What to do when a program is missing. A test never goes on without it.
const REMEDY: &str = "run tests/all, which builds it";

/// The program `rds-csi`.
pub fn rds_csi() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell where this test is")?;
    // Tests are in `deps` beside the programs.
    let directory = test.parent().and_then(Path::parent).context("this test is in no target directory")?;
    existing(directory.join("rds-csi"))
}

/// The program `csi-sanity`.
pub fn csi_sanity() -> Result<PathBuf> {
    existing(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("tools/csi-sanity"))
}

/// The program `helm`.
pub fn helm() -> Result<PathBuf> {
    existing(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("tools/helm"))
}

fn existing(program: PathBuf) -> Result<PathBuf> {
    ensure!(program.is_file(), "{} is missing: {REMEDY}", program.display());
    Ok(program)
}

//! What a process of a cluster is started with beside its own arguments: for tests that put it somewhere else.

use std::ffi::OsString;

/// What is put before the program and into its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// A program with arguments that becomes the process, such as one that enters a network namespace first. Empty: none.
    pub launcher: Vec<OsString>,
    /// Variables beside those of this process.
    pub environment: Vec<(OsString, OsString)>,
}

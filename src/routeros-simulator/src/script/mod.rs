//! A small interpreter of the RouterOS script language: as much of it as a storage driver sends.
//!
//! A script is parsed whole before anything runs, as the appliance does: a syntax error has no effect. Then its
//! commands run in order; an error stops it, and what ran before stays done.
//!
//! - `ast`: what a script is made of
//! - `scan`: characters, words, quoted strings
//! - `parse`: text to commands
//! - `evaluate`: commands to effects on the simulated appliance, and text
//! - `value`: what expressions yield, and `:serialize`

pub(crate) mod ast;
mod evaluate;
mod parse;
mod scan;
pub(crate) mod value;

pub(crate) use evaluate::{Interference, run};

#[cfg(test)]
mod tests;

//! The chaos suite's command line.

fn main() {}

//! Doors for the fuzz targets and the property tests; not for callers.

use super::Dialect;
use super::parse::{self, ParseError};
use crate::Disk;

/// What the parsers make of arbitrary output: the number of records and our disks among them.
pub fn parse_output(is_json: bool, output: &[u8]) -> Result<(usize, Vec<Disk>), String> {
    let dialect = if is_json { Dialect::Json } else { Dialect::Human };
    let parsed = |error: ParseError| error.to_string();
    let records = parse::records(dialect, output).map_err(parsed)?;
    // The others must not panic either; what they say is not needed here.
    let _ = parse::capacity(&records);
    Ok((records.len(), parse::our_disks(&records).map_err(parsed)?))
}

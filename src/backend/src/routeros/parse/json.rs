//! The machine-readable form: what `:serialize to=json` makes of `print as-value`.

use serde_json::{Map, Value};

use super::{ParseError, Record};

/// The largest whole number up to which every whole number has its own `f64`.
const MAX_EXACT_FLOAT: f64 = 9_007_199_254_740_992.0;

/// Parses a list of items, or a single one.
pub(super) fn records(output: &[u8]) -> Result<Vec<Record>, ParseError> {
    match serde_json::from_slice(output).map_err(|error| ParseError::new(format!("JSON: {error}")))? {
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(item) => record(item),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    Err(ParseError::new("JSON: a list of something else than items"))
                }
            })
            .collect(),
        Value::Object(item) if !item.is_empty() => Ok(vec![record(item)?]),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Err(ParseError::new("JSON: neither a list nor an item"))
        }
    }
}

fn record(item: Map<String, Value>) -> Result<Record, ParseError> {
    let mut record = Record::default();
    for (key, value) in item {
        let text = match value {
            Value::Null => String::new(),
            Value::Bool(true) => "yes".to_owned(),
            Value::Bool(false) => "no".to_owned(),
            Value::String(text) => text,
            Value::Number(number) => number
                .as_u64()
                .map(|whole| whole.to_string())
                .or_else(|| number.as_f64().and_then(whole))
                // A number that is no size is nothing that we read.
                .unwrap_or_else(|| number.to_string()),
            // No property that we read is a list.
            Value::Array(_) | Value::Object(_) => continue,
        };
        record.insert(key, text)?;
    }
    Ok(record)
}

/// A whole number that was printed with decimals, such as `443.000000`; nothing if it may have been rounded.
fn whole(float: f64) -> Option<String> {
    (float.fract() == 0.0 && (0.0..MAX_EXACT_FLOAT).contains(&float)).then(|| format!("{float:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_may_have_decimals_and_may_be_texts() {
        for size in ["53687091200", "53687091200.000000", "\"53687091200\"", "\"53 687 091 200\""] {
            let found = records(format!("[{{\"size\":{size}}}]\r\n").as_bytes()).unwrap();
            assert_eq!(found[0].number("size").unwrap(), 53_687_091_200, "{size}");
        }
    }

    #[test]
    fn numbers_that_may_have_been_rounded_are_no_numbers() {
        for size in ["1.5", "9007199254740993.000000", "-1", "1e30", "\"50.0GiB\"", "\"\"", "null", "[1]"] {
            let found = records(format!("[{{\"size\":{size}}}]").as_bytes()).unwrap();
            assert!(found[0].number("size").is_err(), "{size}");
        }
    }

    #[test]
    fn only_an_empty_list_is_an_empty_list() {
        assert_eq!(records(b"[]\r\n").unwrap(), Vec::new());
        for text in ["", "{}", "null", "\"\"", "0", "[", "[[]]", "[null]", "[] []", "failure: no such item"] {
            assert!(records(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}

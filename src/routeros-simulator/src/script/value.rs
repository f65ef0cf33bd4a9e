//! What expressions yield, and how it reads as text and as JSON.

/// A value of the script language.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Nothing, which is not an empty string.
    Nothing,
    /// `true` or `false`; `yes` and `no` in the menus.
    Bool(bool),
    /// A 64-bit number.
    Number(i64),
    /// A string, an item's id too.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A list with names, as `print as-value` gives for each item.
    Record(Vec<(String, Value)>),
}

impl Value {
    /// The value as `:put` prints it.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Value::Nothing => String::new(),
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::Text(value) => value.clone(),
            Value::List(values) => values.iter().map(Value::to_text).collect::<Vec<_>>().join(";"),
            Value::Record(fields) => fields
                .iter()
                .map(|(key, value)| format!("{key}={}", value.to_text()))
                .collect::<Vec<_>>()
                .join(";"),
        }
    }

    /// The value as a number, if it is one or reads as one.
    pub(crate) fn to_number(&self) -> Option<i64> {
        match self {
            Value::Number(value) => Some(*value),
            Value::Text(text) => text.parse().ok(),
            Value::Nothing | Value::Bool(_) | Value::List(_) | Value::Record(_) => None,
        }
    }

    /// The name that `:typeof` gives.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Nothing => "nil",
            Value::Bool(_) => "bool",
            Value::Number(_) => "num",
            Value::Text(_) => "str",
            Value::List(_) | Value::Record(_) => "array",
        }
    }

    /// What `:len` says.
    pub(crate) fn length(&self) -> i64 {
        let length = match self {
            Value::Nothing => 0,
            Value::Bool(_) | Value::Number(_) | Value::Text(_) => self.to_text().chars().count(),
            Value::List(values) => values.len(),
            Value::Record(fields) => fields.len(),
        };
        i64::try_from(length).unwrap_or(i64::MAX)
    }

    /// Whether two values are equal in a condition: `yes` is `true`, and digits equal the number.
    pub(crate) fn equals(&self, other: &Value) -> bool {
        let canonical = |value: &Value| match value.to_text().as_str() {
            "yes" => "true".to_owned(),
            "no" => "false".to_owned(),
            other => other.to_owned(),
        };
        canonical(self) == canonical(other)
    }

    /// The value as `:serialize to=json` writes it.
    ///
    /// `keep_strings` is `options=json.no-string-conversion`; without it digit strings become numbers.
    /// `fractional` prints numbers with six decimals, as some releases do.
    pub(crate) fn to_json(&self, keep_strings: bool, fractional: bool) -> String {
        let number = |value: i64| if fractional { format!("{value}.000000") } else { value.to_string() };
        let string = |text: &str| serde_json::Value::from(text).to_string();
        match self {
            Value::Nothing => string(""),
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => number(*value),
            Value::Text(text) => match text.parse::<i64>() {
                Ok(value) if !keep_strings => number(value),
                _ => string(text),
            },
            Value::List(values) => {
                let values: Vec<_> = values.iter().map(|v| v.to_json(keep_strings, fractional)).collect();
                format!("[{}]", values.join(","))
            }
            Value::Record(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(key, value)| {
                        format!("{}:{}", string(key), value.to_json(keep_strings, fractional))
                    })
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
        }
    }
}

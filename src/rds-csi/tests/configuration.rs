//! `docs/configuration.md` is made of the settings' structs: names, types, defaults and comments. This keeps it equal.
//!
//! `UPDATE_DOCS=1 cargo test -p rds-csi --test configuration` writes it anew.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use controller::ControllerConfig;
use node::NodeConfig;
use schemars::{JsonSchema, schema_for};
use serde_json::Value;

const INTRODUCTION: &str = "\
# Configuration

Controllers and node plugins read one TOML file each. A setting that the program does not know is a mistake, and so is a
value outside its range; all mistakes are reported together, before anything is started. The Helm chart writes these files
from its values.

Made from the programs' own structs. To make it anew: `UPDATE_DOCS=1 cargo test -p rds-csi --test configuration`.
";

/// One program's reference in the making.
struct Reference {
    definitions: Value,
    text: String,
}

impl Reference {
    fn of<T: JsonSchema>(title: &str, start: &str) -> String {
        let schema = serde_json::to_value(schema_for!(T)).unwrap();
        let definitions = schema["$defs"].clone();
        let mut reference = Self { definitions, text: format!("\n## {title}\n\n`{start}`\n") };
        reference.table("", &schema);
        reference.text
    }

    /// The schema that a property stands for, behind references and `Option`.
    fn resolve(&self, schema: &Value) -> Value {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
            return self.definitions[name].clone();
        }
        let alternatives = schema["anyOf"].as_array().into_iter().flatten();
        match alternatives.clone().find(|one| one["type"] != "null") {
            Some(one) => self.resolve(one),
            None => schema.clone(),
        }
    }

    /// The settings of one table, then the tables in it.
    fn table(&mut self, section: &str, schema: &Value) {
        let mut rows = Vec::new();
        let mut sections = Vec::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let resolved = self.resolve(property);
            let is_required =
                schema["required"].as_array().is_some_and(|names| names.contains(&name.as_str().into()));
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            if let Some(found) = subtable(&path, &resolved, &self.resolve(&resolved["items"])) {
                let note = if is_required { "Required. " } else { "" };
                sections.push((found, format!("{note}{}", words(property))));
                continue;
            }
            let default = if is_required {
                "required".to_owned()
            } else if property["default"].is_null() {
                "none".to_owned()
            } else {
                format!("`{}`", property["default"])
            };
            rows.push((
                !is_required,
                format!("| `{name}` | {} | {default} | {} |", kind(&resolved), words(property)),
            ));
        }
        rows.sort();
        if !rows.is_empty() {
            self.text += "\n| Setting | Type | Default | Meaning |\n|---|---|---|---|\n";
        }
        for (_, row) in rows {
            writeln!(self.text, "{row}").unwrap();
        }
        for ((heading, inner), note) in sections {
            // What the field and its type both say is said once.
            let comment = words(&inner);
            let both = if comment.starts_with(note.trim_end_matches('.')) {
                comment
            } else if note.contains(&comment) {
                note
            } else {
                format!("{note}\n\n{comment}")
            };
            writeln!(self.text, "\n### `{heading}`\n\n{both}").unwrap();
            let path = heading.trim_matches(['[', ']']).to_owned();
            self.variants_or_table(&path, &inner);
        }
    }

    fn variants_or_table(&mut self, path: &str, schema: &Value) {
        let Some(variants) = schema["oneOf"].as_array() else { return self.table(path, schema) };
        for variant in variants {
            let mut variant = variant.clone();
            let kind = variant["properties"]["kind"]["const"].as_str().unwrap_or_default().to_owned();
            writeln!(self.text, "\nWith `kind = \"{kind}\"`: {}", words(&variant)).unwrap();
            if let Some(properties) = variant["properties"].as_object_mut() {
                properties.remove("kind");
            }
            self.table(path, &variant);
        }
    }
}

/// The heading and the schema of what TOML writes as a table of its own, or as several.
fn subtable(path: &str, schema: &Value, items: &Value) -> Option<(String, Value)> {
    let is_table = |schema: &Value| schema["properties"].is_object() || schema["oneOf"].is_array();
    if is_table(schema) {
        Some((format!("[{path}]"), schema.clone()))
    } else if is_table(items) {
        Some((format!("[[{path}]]"), items.clone()))
    } else {
        None
    }
}

fn kind(schema: &Value) -> String {
    // An optional setting is of two types, one of which is null.
    let types = schema["type"].as_array().into_iter().flatten();
    let name = types.clone().find(|one| *one != "null").unwrap_or(&schema["type"]);
    match name.as_str() {
        Some("array") => format!("list of {}s", kind(&schema["items"])),
        Some("object") => "table of strings".to_owned(),
        Some("integer") => "number".to_owned(),
        Some(other) => other.to_owned(),
        None => panic!("a setting of no known type: {schema}"),
    }
}

/// A comment as one line of a table.
fn words(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn reference() -> String {
    let controller = "rds-csi controller --config FILE";
    let node = "rds-csi node --config FILE";
    format!(
        "{INTRODUCTION}{}{}",
        Reference::of::<ControllerConfig>("Controller", controller),
        Reference::of::<NodeConfig>("Node plugin", node),
    )
}

#[test]
fn the_reference_is_what_the_structs_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let expected = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/configuration.md is not what the settings' structs say; write it anew with:\n  \
         UPDATE_DOCS=1 cargo test -p rds-csi --test configuration"
    );
}

#[test]
fn every_setting_has_a_meaning_and_a_default_or_is_required() {
    for row in reference().lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
    }
}

//! Rendered objects, and what is asked of them.

use serde_json::Value;

/// The objects of one rendering.
#[derive(Debug, Clone)]
pub(crate) struct Objects(pub(crate) Vec<Value>);

/// The text at `path`, keys parted by `/`; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(&format!("/{path}")).and_then(Value::as_str).unwrap_or_default()
}

/// The list at `path`; empty if there is none.
pub(crate) fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(&format!("/{path}")).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Kind and name, for messages.
pub(crate) fn name(object: &Value) -> String {
    format!("{}/{}", text(object, "kind"), text(object, "metadata/name"))
}

/// Whether each pair of `selector` is in `labels`. An empty selector selects nothing here.
pub(crate) fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let (Some(selector), Some(labels)) = (selector.and_then(Value::as_object), labels) else { return false };
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What makes pods: the object, and the pods' template in it.
pub(crate) struct Workload<'a> {
    pub(crate) object: &'a Value,
    pub(crate) template: &'a Value,
}

impl<'a> Workload<'a> {
    pub(crate) fn spec(&self) -> &'a Value {
        &self.template["spec"]
    }

    /// Its containers, those that run first included.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &'a Value> {
        list(self.template, "spec/initContainers").iter().chain(list(self.template, "spec/containers"))
    }

    /// `kind/name/container`, for messages.
    pub(crate) fn place(&self, container: &Value) -> String {
        format!("{}/{}", name(self.object), text(container, "name"))
    }

    /// Whether it is the node plugin, which needs the host.
    pub(crate) fn is_node(&self) -> bool {
        text(self.object, "kind") == "DaemonSet"
    }
}

impl Objects {
    /// All of a kind.
    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| text(object, "kind") == kind)
    }

    /// The one of this kind and name.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        let is_it = |object: &&Value| text(object, "kind") == kind && text(object, "metadata/name") == name;
        self.0.iter().find(is_it)
    }

    /// Everything that makes pods.
    pub(crate) fn workloads(&self) -> Vec<Workload<'_>> {
        let template = |object| match text(object, "kind") {
            "StatefulSet" | "DaemonSet" | "Deployment" | "Job" => object.pointer("/spec/template"),
            "CronJob" => object.pointer("/spec/jobTemplate/spec/template"),
            _ => None,
        };
        let workload = |object| template(object).map(|template| Workload { object, template });
        self.0.iter().filter_map(workload).collect()
    }

    /// The settings file in a ConfigMap.
    pub(crate) fn settings(&self, config_map: &str, file: &str) -> String {
        let object =
            self.find("ConfigMap", config_map).unwrap_or_else(|| panic!("no ConfigMap {config_map}"));
        let found = object["data"][file].as_str();
        found.unwrap_or_else(|| panic!("no {file} in {config_map}")).to_owned()
    }
}

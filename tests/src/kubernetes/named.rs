//! Secrets and webhook configurations of the simulated API server: read, made, replaced and patched by name.

use axum::body::Body;
use axum::http::{Method, Response};
use serde_json::{Value, json};

use super::server::{Place, Scene, refusal, reply};

/// The object, or the collection if the name is empty, that a request's path means, if it is of these kinds.
pub(super) fn place_at(path: &str) -> Option<Place> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let owned = |text: &str| text.to_owned();
    match segments.as_slice() {
        ["api", version, "namespaces", namespace, "secrets", name @ ..] => {
            Some((format!("/api/{version}/secrets"), owned(namespace), name.concat()))
        }
        ["apis", group, version, kind, name] if kind.ends_with("webhookconfigurations") => {
            Some((format!("/apis/{group}/{version}/{kind}"), String::new(), owned(name)))
        }
        _ => None,
    }
}

impl Scene {
    /// Answers a request for one object of these kinds.
    pub(super) fn named(&mut self, method: &Method, place: Place, body: &[u8]) -> Response<Body> {
        let sent = serde_json::from_slice::<Value>(body).unwrap_or_default();
        if *method != Method::GET && self.refused_writes > 0 {
            self.refused_writes -= 1;
            return refusal(409, "Conflict");
        }
        if *method == Method::POST {
            return self.create_named(place, sent);
        }
        let Some(present) = self.objects.get(&place).cloned() else { return refusal(404, "NotFound") };
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let next = match *method {
            Method::GET => return reply(200, &present),
            Method::PUT if version(&sent) == version(&present) => sent,
            Method::PUT => return refusal(409, "Conflict"),
            Method::PATCH => merged(present, &sent),
            _ => return refusal(405, "MethodNotAllowed"),
        };
        self.put(next, "MODIFIED");
        reply(200, &self.objects[&place])
    }

    fn create_named(&mut self, (path, namespace, _): Place, mut sent: Value) -> Response<Body> {
        sent["kind"] = json!("Secret");
        sent["apiVersion"] = json!("v1");
        sent["metadata"]["namespace"] = json!(namespace);
        let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let place = (path, namespace, name);
        if self.objects.contains_key(&place) {
            return refusal(409, "AlreadyExists");
        }
        self.put(sent, "ADDED");
        reply(201, &self.objects[&place])
    }
}

/// A strategic merge, as far as webhooks go: those of the same name take on what is sent of how they are called.
fn merged(mut present: Value, sent: &Value) -> Value {
    let webhooks = present["webhooks"].as_array_mut();
    for webhook in webhooks.into_iter().flatten() {
        let of_its_name =
            sent["webhooks"].as_array().into_iter().flatten().find(|one| one["name"] == webhook["name"]);
        let told = of_its_name.and_then(|one| one["clientConfig"].as_object());
        for (key, value) in told.into_iter().flatten() {
            webhook["clientConfig"][key] = value.clone();
        }
    }
    present
}

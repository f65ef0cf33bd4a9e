//! AdmissionReview v1: what the API server asks, and what it is answered. Fields that are not named here are accepted
//! and not read.

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hotplug::PatchOperation;
use crate::objects::pod::Pod;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The status code of a denial: whoever deletes tries again. "Not found" would count as done.
const CONFLICT: u16 = 409;

/// Why a body is no question.
#[derive(Debug, Error)]
pub(super) enum ReviewError {
    #[error("the body is no AdmissionReview of pods: {0}")]
    Form(#[from] serde_json::Error),
    #[error("the body is a {kind} of {api_version}; only {KIND} of {API_VERSION} is understood")]
    Version { kind: String, api_version: String },
    #[error("the AdmissionReview has no request")]
    NoRequest,
    #[error("request.uid is empty")]
    NoUid,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    /// To be echoed.
    pub(super) uid: String,
    pub(super) resource: Resource,
    /// `eviction` and the like; empty: the pod itself.
    pub(super) sub_resource: Option<String>,
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) operation: String,
    pub(super) user_info: UserInfo,
    pub(super) object: Option<Pod>,
    pub(super) old_object: Option<Pod>,
    pub(super) dry_run: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Resource {
    group: String,
    resource: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct UserInfo {
    #[serde(default)]
    pub(super) username: String,
}

impl Request {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ReviewError> {
        let Asked { api_version, kind, request } = serde_json::from_slice(body)?;
        if api_version != API_VERSION || kind != KIND {
            return Err(ReviewError::Version { kind, api_version });
        }
        let request = request.ok_or(ReviewError::NoRequest)?;
        if request.uid.is_empty() { Err(ReviewError::NoUid) } else { Ok(request) }
    }

    /// Whether it asks for this operation on a pod itself.
    pub(super) fn is(&self, operation: &str) -> bool {
        let subresource = self.sub_resource.as_deref().unwrap_or_default();
        self.operation == operation
            && self.resource.group.is_empty()
            && self.resource.resource == "pods"
            && subresource.is_empty()
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }
}

/// What the API server is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answered {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}

impl Answered {
    fn to(uid: String, allowed: bool) -> Self {
        let response =
            Response { uid, allowed, status: None, patch_type: None, patch: None, warnings: Vec::new() };
        Self { api_version: API_VERSION, kind: KIND, response }
    }

    /// It may be.
    pub(super) fn allowed(uid: String) -> Self {
        Self::to(uid, true)
    }

    /// It may be, and whoever asked is shown this.
    pub(super) fn allowed_with_warning(uid: String, warning: String) -> Self {
        let mut answered = Self::to(uid, true);
        answered.response.warnings.push(warning);
        answered
    }

    /// It may not be now.
    pub(super) fn denied(uid: String, message: String) -> Self {
        let mut answered = Self::to(uid, false);
        answered.response.status =
            Some(Status { status: "Failure", code: CONFLICT, reason: "Conflict", message });
        answered
    }

    /// It may be, changed so.
    pub(super) fn patched(uid: String, patch: &[PatchOperation]) -> Result<Self, serde_json::Error> {
        let mut answered = Self::to(uid, true);
        answered.response.patch_type = Some("JSONPatch");
        // Base64 in JSON.
        answered.response.patch = Some(ByteString(serde_json::to_vec(patch)?));
        Ok(answered)
    }
}

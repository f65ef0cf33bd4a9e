//! Paths on the node, as kubelet chooses them.

use std::path::{Component, Path, PathBuf};

use super::RequestError;
use super::field::quoted;

/// Longest path, in bytes (Linux `PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;
/// Longest component of one, in bytes (Linux `NAME_MAX`).
const MAX_COMPONENT_BYTES: usize = 255;
/// Besides letters and digits. Kubelet's paths have `~` in them; a space would have to be unescaped in every
/// line of the mount table, and nothing here needs one.
const PUNCTUATION: &str = "/._-~:+@=,%";

/// An absolute path on the node, without `.`, `..` and needless `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePath(PathBuf);

impl NodePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Where something is to be made or undone.
    pub(super) fn parse(field: &str, text: &str) -> Result<Self, RequestError> {
        Self::checked(field, text)?
            .ok_or_else(|| RequestError::invalid(field, format!("{} is not an absolute path", quoted(text))))
    }

    /// Where a volume is said to be; it cannot be at a relative path, but that is an answer, not an error.
    pub(super) fn parse_existing(field: &str, text: &str) -> Result<Self, RequestError> {
        Self::checked(field, text)?.ok_or_else(|| RequestError::NothingThere {
            field: field.to_owned(),
            problem: format!("no volume is at the relative path {}", quoted(text)),
        })
    }

    /// As [`NodePath::parse`], for a field that may be left out.
    pub(super) fn parse_optional(field: &str, text: &str) -> Result<Option<Self>, RequestError> {
        if text.is_empty() { Ok(None) } else { Self::parse(field, text).map(Some) }
    }

    /// `None` if the path is relative and otherwise well formed.
    fn checked(field: &str, text: &str) -> Result<Option<Self>, RequestError> {
        if text.is_empty() {
            return Err(RequestError::required(field));
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(RequestError::invalid(field, format!("is longer than {MAX_PATH_BYTES} bytes")));
        }
        if let Some(found) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !PUNCTUATION.contains(*c)) {
            let problem =
                format!("contains {found:?}; allowed are letters, digits and the characters {PUNCTUATION}");
            return Err(RequestError::invalid(field, problem));
        }
        if text.split('/').any(|component| component.len() > MAX_COMPONENT_BYTES) {
            let problem = format!("has a component longer than {MAX_COMPONENT_BYTES} bytes");
            return Err(RequestError::invalid(field, problem));
        }
        let mut clean = PathBuf::new();
        for component in Path::new(text).components() {
            match component {
                Component::ParentDir => {
                    return Err(RequestError::invalid(field, "must not contain a '..' component"));
                }
                Component::CurDir => {}
                Component::RootDir | Component::Normal(_) | Component::Prefix(_) => clean.push(component),
            }
        }
        if clean == Path::new("/") {
            return Err(RequestError::invalid(field, "must not be the root directory"));
        }
        Ok(text.starts_with('/').then_some(Self(clean)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_paths_are_paths() {
        for text in [
            "/var/lib/kubelet/plugins/kubernetes.io/csi/rds.csi.srvlab.io/0f3a/globalmount",
            "/var/lib/kubelet/pods/0b4f-11/volumes/kubernetes.io~csi/pvc-0b4f/mount",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-0b4f/0b4f-11",
            "/tmp/csi-mount/target",
        ] {
            assert_eq!(NodePath::parse("f", text).unwrap().as_path(), Path::new(text));
        }
    }

    #[test]
    fn one_path_has_one_spelling() {
        for text in ["/a/b", "//a//b/", "/a/./b/", "/a/b/."] {
            assert_eq!(NodePath::parse("f", text).unwrap().as_path(), Path::new("/a/b"), "{text}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = format!("/{}", "a/".repeat(2048));
        let long_component = format!("/{}", "a".repeat(256));
        for text in [
            "",
            "/",
            "//",
            "/.",
            "/..",
            "/a/../b",
            "/a/..",
            "a\0b",
            "/a\nb",
            "/a b",
            "/a'b",
            "/a\"b",
            "/a;b",
            "/a[b",
            "/a\\040b",
            "/$HOME",
            "/é",
            &long,
            &long_component,
        ] {
            assert!(NodePath::parse("f", text).is_err(), "{text:?}");
            assert!(
                matches!(NodePath::parse_existing("f", text), Err(RequestError::Invalid { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn nothing_is_at_a_relative_path() {
        assert!(matches!(NodePath::parse("f", "some/path"), Err(RequestError::Invalid { .. })));
        assert!(matches!(NodePath::parse_existing("f", "some/path"), Err(RequestError::NothingThere { .. })));
        assert!(matches!(NodePath::parse_existing("f", "../path"), Err(RequestError::Invalid { .. })));
        assert_eq!(NodePath::parse_optional("f", ""), Ok(None));
    }
}

//! What the node shows beside TLS: its plugin's ServiceAccount token, if it has no certificate (DESIGN.md, "Security").
//!
//! The token is read anew for each call: kubelet renews the file long before the token's time is over. It is marked as
//! sensitive, and nothing here logs it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The largest token that is sent, in bytes: what the controllers look at.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// Shows the token, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    /// Where kubelet keeps the token.
    pub(crate) token_file: Option<PathBuf>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(file) = &self.token_file {
            // Without a token there is nothing to ask with; it may be there at the next try.
            let token = bearer(file).map_err(|problem| {
                Status::unavailable(format!("cannot read the token {}: {problem}", file.display()))
            })?;
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

/// The value to show. The file is on a memory file system and small, so reading it does not hold up the runtime.
fn bearer(file: &Path) -> Result<MetadataValue<Ascii>, String> {
    let mut token = String::new();
    let file = File::open(file).map_err(|error| error.to_string())?;
    file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut token).map_err(|error| error.to_string())?;
    let token = token.trim();
    if token.is_empty() || token.len() as u64 > MAX_TOKEN_BYTES {
        return Err(format!("it does not have 1 to {MAX_TOKEN_BYTES} bytes"));
    }
    let value = MetadataValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| "it has bytes that no token has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_token_of_now_is_shown_and_not_printed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let mut credentials = Credentials { token_file: Some(file.clone()) };
        for token in ["first", "second"] {
            fs::write(&file, format!("{token}\n")).unwrap();
            let shown = credentials.call(Request::new(())).unwrap();
            let value = shown.metadata().get("authorization").unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {token}"));
            assert!(!format!("{:?}", shown.metadata()).contains(token));
        }
        for broken in [String::new(), "a\nb".to_owned(), "x".repeat(MAX_TOKEN_BYTES as usize + 1)] {
            fs::write(&file, &broken).unwrap();
            let refused = credentials.call(Request::new(())).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unavailable);
            assert!(broken.is_empty() || !refused.message().contains(&broken));
        }
        fs::remove_file(&file).unwrap();
        assert!(credentials.call(Request::new(())).is_err());

        let without = Credentials { token_file: None }.call(Request::new(())).unwrap();
        assert!(without.metadata().is_empty());
    }
}

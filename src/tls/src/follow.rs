//! The files as they are now.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::files::{Configs, Content, Files, TlsError};

/// How often the files are read again.
pub const REREAD_INTERVAL: Duration = Duration::from_secs(10);

/// Until when certificates hold, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The last of the authorities.
    pub ca: i64,
    /// The own certificate.
    pub own: Option<i64>,
}

/// TLS as the files say now. Clones share it.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    in_use: RwLock<InUse>,
}

struct InUse {
    content: Content,
    configs: Arc<Configs>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files, and reads them again and again as long as somebody holds the answer or a clone of it. Needs a
    /// runtime.
    pub fn follow(files: Files) -> Result<Self, TlsError> {
        let tls = Self::read(files)?;
        tokio::spawn(follow(Arc::downgrade(&tls.shared)));
        Ok(tls)
    }

    /// Reads the files once, for a program that ends soon.
    pub fn read(files: Files) -> Result<Self, TlsError> {
        let content = Content::read(&files)?;
        let configs = Arc::new(Configs::build(&files, &content)?);
        let in_use = RwLock::new(InUse { content, configs });
        Ok(Self { shared: Arc::new(Shared { files, in_use }) })
    }

    /// Reads the files again, now. Says whether they are in use from now on in place of others; if they cannot be used,
    /// what was in use still is.
    pub fn reread(&self) -> Result<bool, TlsError> {
        self.shared.reread()
    }

    /// Until when the certificates in use hold.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        let configs = self.configs();
        Expiry { ca: configs.ca_ends, own: configs.own_ends }
    }

    pub(crate) fn configs(&self) -> Arc<Configs> {
        // Each change replaces the whole.
        self.shared.in_use.read().unwrap_or_else(PoisonError::into_inner).configs.clone()
    }
}

impl Shared {
    fn reread(&self) -> Result<bool, TlsError> {
        let content = Content::read(&self.files)?;
        if content == self.in_use.read().unwrap_or_else(PoisonError::into_inner).content {
            return Ok(false);
        }
        let configs = Arc::new(Configs::build(&self.files, &content)?);
        let (own_ends, ca_ends) = (configs.own_ends, configs.ca_ends);
        *self.in_use.write().unwrap_or_else(PoisonError::into_inner) = InUse { content, configs };
        tracing::info!(
            ca = %self.files.ca.display(), ca_ends, own_ends,
            "certificates were replaced; new connections use the new ones"
        );
        Ok(true)
    }
}

async fn follow(shared: Weak<Shared>) {
    loop {
        sleep(REREAD_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let read = spawn_blocking(move || {
            if let Err(error) = shared.reread() {
                tracing::error!(
                    %error,
                    "the certificates on disk cannot be used; the old ones stay in use, until they expire"
                );
            }
        });
        if read.await.is_err() {
            // The runtime ends.
            return;
        }
    }
}

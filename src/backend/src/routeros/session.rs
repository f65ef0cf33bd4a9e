//! The SSH connection: one, kept, opened again when it fails, with a bounded number of commands in flight.
//!
//! Life cycle: nothing is opened before the first command. Whoever finds no usable connection opens one, alone, while
//! the others wait within their own deadlines; after failures it waits first (capped exponential back-off with
//! jitter). A connection on which a command timed out is not used for new commands. Nothing relies on keep-alive
//! requests, which the appliance does not answer: every command has a deadline.
//!
//! An error says whether the command may have reached the appliance: [`AskError::NotSent`] or [`AskError::Lost`].

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Preferred, client};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::Dialect;
use super::answer::Answer;
use super::config::Settings;
use super::script;

/// Pause after the first failed connection, in ms; doubles with each.
const BACKOFF_FIRST_MS: u64 = 100;
/// Longest pause between connections, in ms.
const BACKOFF_MAX_MS: u64 = 5_000;
/// Most bytes of an answer; some 10,000 disks in the human form.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// The command did not reach the appliance.
    #[error("{0}")]
    NotSent(String),
    /// The command may have reached the appliance; its answer did not come back.
    #[error("{0}")]
    Lost(String),
}

/// Who is told of each attempt to connect: whether it succeeded, and how long it took.
pub(super) type Attempts = dyn Fn(bool, Duration) + Send + Sync;

/// A way to ask the appliance.
pub(super) struct Session {
    settings: Arc<Settings>,
    ssh: Arc<client::Config>,
    permits: Semaphore,
    link: Mutex<Link>,
    told: Arc<Attempts>,
}

/// The connection that new commands use, and what the last attempts to have one came to.
#[derive(Default)]
struct Link {
    current: Option<Arc<Connection>>,
    failures: u32,
    not_before: Option<Instant>,
}

struct Connection {
    handle: client::Handle<PinnedHost>,
    /// What the appliance speaks; asked once a connection, since it may have been upgraded in between.
    dialect: OnceCell<Dialect>,
    /// A command on it timed out.
    is_suspect: AtomicBool,
}

impl Session {
    pub(super) fn new(settings: Arc<Settings>, told: Arc<Attempts>) -> Self {
        let algorithms: Vec<_> = settings.host_keys.iter().map(PublicKey::algorithm).collect();
        let ssh = client::Config {
            // Ask only for kinds of host keys that are known, so that the appliance does not show another one.
            preferred: Preferred { key: Cow::Owned(algorithms), ..Preferred::default() },
            nodelay: true,
            ..client::Config::default()
        };
        let permits = Semaphore::new(settings.max_sessions);
        Self { settings, ssh: Arc::new(ssh), permits, link: Mutex::default(), told }
    }

    /// Runs `script` and returns its answer.
    pub(super) async fn ask(&self, script: &str, limit: Duration) -> Result<Answer, AskError> {
        self.ask_in_dialect(limit, false, |_| script.to_owned()).await.map(|(_, answer)| answer)
    }

    /// Runs the script that `script` makes for what the appliance speaks.
    pub(super) async fn ask_either(
        &self,
        limit: Duration,
        script: impl Fn(Dialect) -> String,
    ) -> Result<(Dialect, Answer), AskError> {
        self.ask_in_dialect(limit, true, script).await
    }

    async fn ask_in_dialect(
        &self,
        limit: Duration,
        needs_dialect: bool,
        script: impl Fn(Dialect) -> String,
    ) -> Result<(Dialect, Answer), AskError> {
        let deadline = Instant::now() + limit;
        let not_sent = |reason: &str| AskError::NotSent(reason.to_owned());
        let _permit = timeout_at(deadline, self.permits.acquire())
            .await
            .map_err(|_| not_sent("all sessions are busy"))?
            .map_err(|_| not_sent("closed"))?;
        loop {
            let (connection, is_new) = timeout_at(deadline, self.connection())
                .await
                .map_err(|_| not_sent("no connection in time"))?
                .map_err(AskError::NotSent)?;
            let channel = match connection.open_channel(deadline).await {
                Ok(channel) => channel,
                // A kept connection that turns out to be dead has done no harm yet.
                Err(_) if !is_new && Instant::now() < deadline => continue,
                Err(reason) => return Err(AskError::NotSent(reason)),
            };
            let dialect = if needs_dialect { connection.dialect(deadline).await? } else { Dialect::Human };
            let answer = connection.exec(channel, &script(dialect), deadline).await?;
            return Ok((dialect, answer));
        }
    }

    /// The connection for a new command, and whether it was opened for it.
    async fn connection(&self) -> Result<(Arc<Connection>, bool), String> {
        let mut link = self.link.lock().await;
        if let Some(connection) = link.current.as_ref().filter(|connection| connection.is_usable()) {
            return Ok((connection.clone(), false));
        }
        link.current = None;
        if let Some(not_before) = link.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        // Noted before the attempt: the caller's deadline may end it at any time.
        link.not_before = Some(Instant::now() + backoff(link.failures));
        link.failures = link.failures.saturating_add(1);
        let deadline = Instant::now() + self.settings.connect_timeout;
        let address = format!("{}:{}", self.settings.address, self.settings.port);
        let begun = Instant::now();
        let opened =
            timeout_at(deadline, self.open()).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        (self.told)(opened.is_ok(), begun.elapsed());
        match opened {
            Ok(handle) => {
                tracing::info!(address, "connected to the appliance");
                let connection =
                    Connection { handle, dialect: OnceCell::new(), is_suspect: AtomicBool::new(false) };
                let connection = Arc::new(connection);
                *link = Link { current: Some(connection.clone()), ..Link::default() };
                Ok((connection, true))
            }
            Err(reason) => {
                tracing::warn!(address, reason, failures = link.failures, "cannot connect to the appliance");
                Err(format!("cannot connect to {address}: {reason}"))
            }
        }
    }

    async fn open(&self) -> Result<client::Handle<PinnedHost>, String> {
        let settings = &self.settings;
        let socket = TcpStream::connect((settings.address.as_str(), settings.port))
            .await
            .map_err(|e| e.to_string())?;
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let host = PinnedHost { settings: settings.clone() };
        let mut handle =
            client::connect_stream(self.ssh.clone(), socket, host).await.map_err(|e| e.to_string())?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(settings.private_key.clone()), None);
        let outcome =
            handle.authenticate_publickey(settings.user.clone(), key).await.map_err(|e| e.to_string())?;
        if outcome.success() {
            Ok(handle)
        } else {
            Err(format!("the appliance refused the key of user {}", settings.user))
        }
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.handle.is_closed() && !self.is_suspect.load(Ordering::Relaxed)
    }

    async fn open_channel(&self, deadline: Instant) -> Result<Channel<client::Msg>, String> {
        let opened = timeout_at(deadline, self.handle.channel_open_session()).await;
        opened
            .map_err(|_| "no session in time".to_owned())
            .and_then(|result| result.map_err(|e| e.to_string()))
            .inspect_err(|_| self.is_suspect.store(true, Ordering::Relaxed))
    }

    async fn dialect(&self, deadline: Instant) -> Result<Dialect, AskError> {
        let ask = async {
            let channel = self.open_channel(deadline).await.map_err(AskError::NotSent)?;
            let answer = self.exec(channel, &script::probe_dialect(), deadline).await?;
            answer.of_dialect().map_err(|error| AskError::NotSent(error.to_string()))
        };
        self.dialect.get_or_try_init(|| ask).await.copied()
    }

    /// Runs `script` on `channel`. From here on the command may take effect, whatever comes back.
    async fn exec(
        &self,
        channel: Channel<client::Msg>,
        script: &str,
        deadline: Instant,
    ) -> Result<Answer, AskError> {
        match timeout_at(deadline, collect(channel, script)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(AskError::Lost(reason)),
            Err(_) => {
                self.is_suspect.store(true, Ordering::Relaxed);
                Err(AskError::Lost("no answer in time".to_owned()))
            }
        }
    }
}

/// Sends the command and reads its answer to the end.
async fn collect(mut channel: Channel<client::Msg>, script: &str) -> Result<Answer, String> {
    channel.exec(true, script).await.map_err(|error| error.to_string())?;
    let mut answer = Answer::default();
    let mut has_ended = false;
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::Data { data } = &message {
            answer.stdout.extend_from_slice(data);
        } else if let ChannelMsg::ExtendedData { data, .. } = &message {
            answer.stderr.extend_from_slice(data);
        } else if let ChannelMsg::ExitStatus { exit_status } = message {
            answer.exit_status = Some(exit_status);
        } else if matches!(message, ChannelMsg::Failure) {
            return Err("the appliance refused to run a command".to_owned());
        } else if matches!(message, ChannelMsg::Eof | ChannelMsg::Close) {
            has_ended = true;
        }
        if answer.stdout.len() + answer.stderr.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes"));
        }
    }
    // Without the end of the channel it was the connection that ended.
    if has_ended { Ok(answer) } else { Err("the connection dropped before the answer".to_owned()) }
}

/// The pause after `failures` failed attempts: doubling, capped, with its upper half random.
fn backoff(failures: u32) -> Duration {
    let full_ms =
        BACKOFF_FIRST_MS.saturating_mul(1_u64.checked_shl(failures).unwrap_or(u64::MAX)).min(BACKOFF_MAX_MS);
    Duration::from_millis(rand::rng().random_range(full_ms / 2..=full_ms))
}

/// Accepts the host keys of the settings and no other.
struct PinnedHost {
    settings: Arc<Settings>,
}

/// Why an SSH connection could not be made.
#[derive(Debug, thiserror::Error)]
enum SshError {
    #[error("the appliance shows the host key {shown}, expected is {expected}")]
    HostKey { shown: String, expected: String },
    #[error(transparent)]
    Ssh(#[from] russh::Error),
}

impl client::Handler for PinnedHost {
    type Error = SshError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let known = &self.settings.host_keys;
        if let PublicKeyOrCertificate::PublicKey { key, .. } = shown
            && known.iter().any(|known| known.key_data() == key.key_data())
        {
            return Ok(true);
        }
        let expected: Vec<_> = known.iter().map(fingerprint).collect();
        Err(SshError::HostKey { shown: fingerprint(&shown.public_key()), expected: expected.join(" or ") })
    }
}

fn fingerprint(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_cap() {
        for failures in 0..100 {
            let full_ms = 100_u128.checked_shl(failures).unwrap_or(u128::MAX).min(5_000);
            let pause_ms = backoff(failures).as_millis();
            assert!(pause_ms >= full_ms.min(5_000) / 2 && pause_ms <= 5_000, "{failures}: {pause_ms}");
        }
    }
}

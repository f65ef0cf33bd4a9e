//! The SSH side: who may log in, and what happens to a command between its arrival and its answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet, server};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::appliance::Appliance;
use crate::backing;
use crate::config::{ErrorStream, SimulatorConfig};
use crate::fault::{Fault, Faults};
use crate::log::{LogEntry, entries};
use crate::script::{self, Interference};

/// Bytes in flight between a client's socket and its session.
const PIPE_BYTES: usize = 64 * 1024;
/// Standard error's number in SSH's extended data.
const STDERR: u32 = 1;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) config: SimulatorConfig,
    pub(crate) authorized: Vec<PublicKey>,
    pub(crate) started: Instant,
    pub(crate) machine: Mutex<Machine>,
    /// Ends everything.
    pub(crate) stop: CancellationToken,
}

/// What changes while the simulator runs. One lock: scripts run one after the other.
pub(crate) struct Machine {
    pub(crate) appliance: Appliance,
    pub(crate) faults: Faults,
    pub(crate) held: Vec<String>,
    pub(crate) log: Vec<LogEntry>,
    /// Commands that arrived, whatever became of them.
    pub(crate) commands_seen: u64,
    /// Commands that ran, late ones too.
    pub(crate) commands_run: u64,
    /// Connections that were accepted.
    pub(crate) connections_seen: u64,
    pub(crate) refuses_connections: bool,
    /// Cuts the connections that are open.
    pub(crate) cut: CancellationToken,
}

/// What a command answers.
struct Answer {
    output: String,
    error: Option<String>,
}

impl Shared {
    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a script under the lock and keeps what it changed.
    fn execute(&self, text: &str, interference: Interference) -> Answer {
        let mut machine = self.machine();
        machine.commands_run += 1;
        let evaluation = script::run(text, &mut machine.appliance, &self.config, interference);
        if !evaluation.effects.is_empty() {
            let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            machine.log.extend(entries(at_ms, evaluation.effects));
            if let Err(error) = backing::save(self.config.state_file.as_deref(), machine.appliance.contents())
            {
                tracing::warn!(%error, "simulated appliance cannot save its state");
            }
        }
        Answer { output: evaluation.output, error: evaluation.error }
    }

    /// Runs the commands that faults held back, in order; returns how many.
    pub(crate) fn deliver_held(&self) -> usize {
        let held = std::mem::take(&mut self.machine().held);
        for text in &held {
            let answer = self.execute(text, Interference::Nothing);
            tracing::debug!(error = answer.error, "simulated appliance ran a held command");
        }
        held.len()
    }

    fn latency(&self, text: &str) -> Duration {
        let latencies = &self.config.latencies;
        if text.contains("/disk add") {
            latencies.add
        } else if text.contains("/disk remove") {
            latencies.remove
        } else if text.contains(" set ") {
            latencies.set
        } else {
            latencies.print
        }
    }
}

/// Accepts connections until the simulator stops.
pub(crate) async fn listen(shared: Arc<Shared>, listener: TcpListener, config: Arc<server::Config>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (is_refused, cut) = {
            let mut machine = shared.machine();
            machine.connections_seen += 1;
            (machine.refuses_connections, machine.cut.child_token())
        };
        if !is_refused {
            tokio::spawn(serve(shared.clone(), socket, config.clone(), cut));
        }
    }
}

/// Serves one connection. The session talks to a pipe, so that cutting the pump drops the socket at once.
async fn serve(
    shared: Arc<Shared>,
    mut socket: TcpStream,
    config: Arc<server::Config>,
    cut: CancellationToken,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "simulated appliance: a connection stays slow");
    }
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let connection = Connection { shared, cut: cut.clone() };
    let session = async {
        match server::run_stream(config, near, connection).await {
            Ok(session) => session.await,
            Err(error) => Err(error),
        }
    };
    let pump = tokio::io::copy_bidirectional(&mut socket, &mut far);
    tokio::select! {
        () = cut.cancelled() => {}
        result = session => tracing::debug!(?result, "simulated appliance: session ended"),
        _ = pump => {}
    }
    // Commands that still hang on this connection end with it.
    cut.cancel();
}

struct Connection {
    shared: Arc<Shared>,
    cut: CancellationToken,
}

impl Connection {
    fn may_log_in(&self, key: &PublicKey) -> Auth {
        if self.shared.authorized.iter().any(|known| known.key_data() == key.key_data()) {
            Auth::Accept
        } else {
            Auth::reject()
        }
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.may_log_in(offer.public_key))
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.may_log_in(key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        let text = String::from_utf8_lossy(data).into_owned();
        tokio::spawn(answer(self.shared.clone(), self.cut.clone(), session.handle(), channel, text));
        Ok(())
    }
}

/// Takes one command from its arrival to its answer, through the fault that strikes it.
async fn answer(
    shared: Arc<Shared>,
    cut: CancellationToken,
    handle: Handle,
    channel: ChannelId,
    text: String,
) {
    let fault = {
        let mut machine = shared.machine();
        machine.commands_seen += 1;
        machine.faults.strike(&text)
    };
    tokio::time::sleep(shared.latency(&text)).await;
    let interference = match &fault {
        Some(Fault::Hang) => return cut.cancelled().await,
        Some(Fault::DropBeforeEffect) => return cut.cancel(),
        Some(Fault::DelayDelivery) => {
            shared.machine().held.push(text);
            return cut.cancel();
        }
        Some(Fault::HalfDone) => Interference::HalfDone,
        Some(Fault::Fail(words)) => Interference::Fail(words.clone()),
        Some(Fault::Slow(more)) => {
            tokio::time::sleep(*more).await;
            Interference::Nothing
        }
        Some(Fault::DropAfterEffect | Fault::Garbage(_) | Fault::DuplicateLater) | None => {
            Interference::Nothing
        }
    };
    let mut answer = shared.execute(&text, interference);
    match fault {
        Some(Fault::DropAfterEffect | Fault::HalfDone) => return cut.cancel(),
        Some(Fault::DuplicateLater) => shared.machine().held.push(text),
        Some(Fault::Garbage(bytes)) => {
            let status = u32::from(answer.error.take().is_some());
            return send(&handle, channel, bytes, Vec::new(), status).await;
        }
        Some(
            Fault::Hang | Fault::DropBeforeEffect | Fault::DelayDelivery | Fault::Fail(_) | Fault::Slow(_),
        )
        | None => {}
    }
    let (mut stdout, mut stderr, mut status) = (answer.output.into_bytes(), Vec::new(), 0);
    if let Some(words) = answer.error {
        let words = format!("{words}\r\n").into_bytes();
        match shared.config.error_stream {
            ErrorStream::Stdout => stdout.extend(words),
            ErrorStream::Stderr => stderr.extend(words),
        }
        status = shared.config.error_exit_status;
    }
    send(&handle, channel, stdout, stderr, status).await;
}

/// Sends an answer; a client that is gone does not matter.
async fn send(handle: &Handle, channel: ChannelId, stdout: Vec<u8>, stderr: Vec<u8>, status: u32) {
    if !stdout.is_empty() {
        let _ = handle.data(channel, stdout).await;
    }
    if !stderr.is_empty() {
        let _ = handle.extended_data(channel, STDERR, stderr).await;
    }
    let _ = handle.exit_status_request(channel, status).await;
    let _ = handle.eof(channel).await;
    let _ = handle.close(channel).await;
}

/// The server's SSH settings: public keys only.
pub(crate) fn ssh_config(host_key: russh::keys::PrivateKey) -> server::Config {
    server::Config {
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        keys: vec![host_key],
        // A simulator has no secrets to guard by slowness.
        auth_rejection_time: Duration::from_millis(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        ..server::Config::default()
    }
}

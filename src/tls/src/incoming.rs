//! Servers: each new connection is accepted with the certificates of that moment.

use std::io;
use std::time::Duration;

use futures::stream::{self, Stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::files::TlsError;
use crate::follow::Tls;

/// How long a caller may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handshakes may be under way; more callers wait in the kernel. A leader's nodes all come at once when it
/// takes office.
const HANDSHAKES_AT_ONCE: usize = 1_024;
/// Pause after the system could not accept a connection, for want of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the kernel waits for a caller to acknowledge what was said to it, or a question whether it is still there.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence the kernel asks. No timer of ours for that: it would wake the process for thousands of nodes
/// that speak in time.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// And again after so long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Whom a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Who has a certificate of our authority.
    Certified,
    /// Who has none as well; what such a caller may do is for the services to say.
    Anyone,
    /// Who is not asked for one, and speaks HTTP/1.1: API servers, to webhooks.
    Unasked,
}

struct Door {
    tls: Tls,
    callers: Callers,
    listener: TcpListener,
    handshakes: JoinSet<io::Result<TlsStream<TcpStream>>>,
}

impl Tls {
    /// Callers of `listener` that have proven who they are as far as `callers` asks. Those that cannot are turned away; the
    /// stream never ends, and dropping it closes the listener.
    pub fn incoming(
        &self,
        listener: TcpListener,
        callers: Callers,
    ) -> Result<impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send + use<>, TlsError> {
        if self.configs().servers.is_none() {
            return Err(TlsError::NoServer);
        }
        let door = Door { tls: self.clone(), callers, listener, handshakes: JoinSet::new() };
        Ok(stream::unfold(door, |mut door| async move { Some((Ok(door.next().await), door)) }))
    }
}

impl Door {
    /// The next caller whose handshake succeeded.
    async fn next(&mut self) -> TlsStream<TcpStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < HANDSHAKES_AT_ONCE => match accepted {
                    Ok((stream, _)) => self.greet(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(stream)) => return stream,
                    Ok(Err(error)) => tracing::debug!(%error, "a caller was turned away"),
                    Err(error) => tracing::warn!(%error, "a handshake did not end well"),
                },
            }
        }
    }

    fn greet(&mut self, stream: TcpStream) {
        let configs = self.tls.configs();
        let Some(servers) = &configs.servers else { return };
        let config = match self.callers {
            Callers::Certified => &servers.certified,
            Callers::Anyone => &servers.anyone,
            Callers::Unasked => &servers.unasked,
        };
        let acceptor = TlsAcceptor::from(config.clone());
        self.handshakes.spawn(async move {
            // Small messages go back and forth: waiting for more to send would only delay them.
            stream.set_nodelay(true)?;
            end_with_the_caller(&stream)?;
            timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
        });
    }
}

/// Has the kernel end the connection once the caller's host no longer answers.
fn end_with_the_caller(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let questions = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN_AFTER);
    socket.set_tcp_keepalive(&questions)?;
    socket.set_tcp_user_timeout(Some(ACKNOWLEDGE_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_looks_whether_a_caller_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        end_with_the_caller(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), ASK_AGAIN_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(ACKNOWLEDGE_TIMEOUT));
    }
}

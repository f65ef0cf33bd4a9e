//! Clients: each new connection of a channel is made with the certificates of that moment.

use std::io;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{BoxError, Service, service_fn};

use crate::files::TlsError;
use crate::follow::Tls;

impl Tls {
    /// A channel to the server of the name `server` at `address`, which is `host:port`. It connects when it is first
    /// used, and again whenever it was given up; the name is in the server's certificate, wherever that server runs.
    /// `connector` opens the TCP connections. A time limit for connecting, set in `settings`, is for TLS too. Needs a
    /// runtime.
    pub fn channel(
        &self,
        server: &'static str,
        address: &str,
        connector: HttpConnector,
        settings: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, TlsError> {
        let wrong = |problem: String| TlsError::Address { address: address.to_owned(), problem };
        let server = ServerName::try_from(server);
        let server = server.map_err(|error: InvalidDnsNameError| wrong(error.to_string()))?;
        // TLS is in the connector: this URI's own would be made once, from what the files held then.
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| wrong(error.to_string()))?;
        let tls = self.clone();
        let connect = service_fn(move |uri: Uri| {
            let (tls, mut tcp, server) = (tls.clone(), connector.clone(), server.clone());
            async move {
                let tcp = tcp.call(uri).await?.into_inner();
                let connector = TlsConnector::from(tls.configs().client.clone());
                let stream = connector.connect(server, tcp).await.map_err(explained)?;
                Ok::<_, BoxError>(TokioIo::new(stream))
            }
        });
        Ok(settings(endpoint).connect_with_connector_lazy(connect))
    }
}

/// Says that the connection failed in TLS: "connection reset" alone would be taken for the network's.
fn explained(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("TLS: {error}"))
}

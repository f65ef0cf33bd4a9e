//! Where the replicas are, and the certificate that makes the caller an operator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// How long one replica may take to accept a connection, in ms.
const CONNECT_TIMEOUT_MS: u64 = 2_000;

/// Access to a cluster, as a TOML file gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessFile {
    /// Replicas as `host:port`, tried in this order.
    pub endpoints: Vec<String>,
    /// The authority that signed the replicas' certificates.
    pub ca: PathBuf,
    /// The operator's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl AccessFile {
    /// Reads it, or says what is wrong.
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let named = |mistake: String| vec![format!("{}: {mistake}", path.display())];
        let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        toml::from_str(&text).map_err(|error| named(error.to_string()))
    }
}

/// Access to a cluster: files read, endpoints checked.
#[derive(Debug, Clone)]
pub struct Access {
    replicas: Vec<(String, Endpoint)>,
}

impl Access {
    /// Reads the files and checks the endpoints; the error has every mistake.
    pub fn load(file: &AccessFile) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut read = |name: &str, path: &Path| {
            fs::read(path).unwrap_or_else(|error| {
                mistakes.push(format!("{name}: {}: {error}", path.display()));
                Vec::new()
            })
        };
        let (ca, cert, key) = (read("ca", &file.ca), read("cert", &file.cert), read("key", &file.key));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(cert, key))
            .domain_name(replica::SERVER_NAME);
        if file.endpoints.is_empty() {
            mistakes.push("endpoints: there must be at least one".to_owned());
        }
        let can_connect = mistakes.is_empty();
        let mut replicas = Vec::new();
        for address in &file.endpoints {
            match endpoint(address, can_connect.then_some(&tls)) {
                Ok(endpoint) => replicas.push((address.clone(), endpoint)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(Self { replicas }) } else { Err(mistakes) }
    }

    /// The replicas with a channel each; nothing is connected before it is used.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = (&str, Channel)> {
        self.replicas.iter().map(|(address, endpoint)| (address.as_str(), endpoint.connect_lazy()))
    }
}

fn endpoint(address: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, String> {
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    if !has_port {
        return Err(format!("endpoints: {address:?} is not host:port"));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| format!("endpoints: {address:?} is not host:port"))?
        .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
        .tcp_nodelay(true);
    match tls {
        None => Ok(endpoint),
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(|error| format!("certificates: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named() {
        let nowhere = PathBuf::from("/nonexistent/file.pem");
        let file = AccessFile {
            endpoints: vec![
                "127.0.0.1:1".to_owned(),
                "no-port".to_owned(),
                "h:0".to_owned(),
                ":5".to_owned(),
            ],
            ca: nowhere.clone(),
            cert: nowhere.clone(),
            key: nowhere,
        };
        let mistakes = Access::load(&file).unwrap_err();
        assert_eq!(mistakes.len(), 6, "{mistakes:?}");
    }
}

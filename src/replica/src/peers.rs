//! Connections to the other replicas: one a peer, opened when first used and again when lost.
//!
//! A configured address wins over the one in the membership: a pod's name gives the address only, and the
//! configuration is what the pod was started with.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use proto::peer::v1::peer_client::PeerClient;
use tls::{Tls, TlsError};
use tonic::transport::Channel;

use crate::codec::MAX_MESSAGE_BYTES;
use crate::config::ReplicaConfig;
use crate::tls::SERVER_NAME;

/// How long a connection may take to open, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How often an open connection is tried, and how long its answer may take: a peer that vanished without a word is
/// noticed within the sum.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(1_000);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// A client of one peer.
pub(crate) type Client = PeerClient<Channel>;

pub(crate) struct Peers {
    pub(crate) tls: Tls,
    configured: BTreeMap<String, String>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    pub(crate) fn new(config: &ReplicaConfig) -> Result<Self, TlsError> {
        let tls = Tls::follow(config.tls.clone().into())?;
        let configured = config
            .peers
            .iter()
            .map(|peer| (peer.name.clone(), peer.address.clone()))
            .collect::<BTreeMap<_, _>>();
        let peers = Self { tls, configured, channels: Mutex::default() };
        // Says now whether the addresses can be used at all; names need not be known yet.
        for address in peers.configured.values() {
            open(&peers.tls, address)?;
        }
        Ok(peers)
    }

    /// A client of the replica `name`, which the membership places at `address`.
    pub(crate) fn client(&self, name: &str, address: &str) -> Result<Client, String> {
        Ok(PeerClient::new(self.channel(name, address)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The connection to that replica.
    pub(crate) fn channel(&self, name: &str, address: &str) -> Result<Channel, String> {
        let address = self.configured.get(name).map_or(address, String::as_str);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = open(&self.tls, address).map_err(|error| error.to_string())?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// A channel to the replica at `address`; connects when it is first used.
pub(crate) fn open(tls: &Tls, address: &str) -> Result<Channel, TlsError> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    tls.channel(SERVER_NAME, address, connector, |endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
    })
}

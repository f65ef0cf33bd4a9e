//! Has the controller beside this process give its leadership away, before it is stopped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ControllerConfig;
use crate::run::tls_files;

/// Asks the controller of these settings, with its own certificate. Done: another one leads, or it did not lead; else
/// why not, after 10 s at the latest.
pub async fn hand_over(config: &ControllerConfig) -> Result<(), String> {
    replica::ask_to_hand_over(tls_files(config), &reached_at(config.listen).to_string()).await
}

/// Where a server is reached from its own machine that listens there.
fn reached_at(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_reached_on_the_loopback() {
        for (listen, reached) in
            [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("10.0.0.3:7", "10.0.0.3:7")]
        {
            assert_eq!(reached_at(listen.parse().unwrap()).to_string(), reached);
        }
    }
}

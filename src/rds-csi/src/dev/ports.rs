//! Free ports of this machine.
//!
//! They are drawn below the range that Linux takes for outgoing connections: a port from that range, left by a
//! killed replica, may be taken by anybody's next connection, and a peer that dials it can even reach itself.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

use rand::Rng;

/// Where ports are drawn from; Linux takes outgoing ones from 32768 upwards.
const PORTS: Range<u16> = 20_000..30_000;
/// Draws until it is given up: so many in vain mean that something else is wrong.
const MAX_DRAWS: usize = 1_000;

/// `count` different ports that nobody listens on and that are not in `spoken_for`.
pub(crate) fn choose(count: usize, spoken_for: &[u16]) -> io::Result<Vec<u16>> {
    let mut random = rand::rng();
    let mut chosen = BTreeSet::new();
    for _ in 0..MAX_DRAWS {
        if chosen.len() == count {
            return Ok(chosen.into_iter().collect());
        }
        let port = random.random_range(PORTS);
        if !spoken_for.contains(&port) && is_free(port) {
            chosen.insert(port);
        }
    }
    let reason = format!("no {count} free ports found between {} and {}", PORTS.start, PORTS.end);
    Err(io::Error::new(io::ErrorKind::AddrInUse, reason))
}

/// Whether nobody listens on `port`.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(address(port)).is_ok()
}

/// `port` on the loopback interface.
pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_are_in_range() {
        let ports = choose(50, &[]).unwrap();
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 50);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind(address(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}

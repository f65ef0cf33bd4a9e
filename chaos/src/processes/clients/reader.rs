//! Reads volumes of others, through any replica.

use rand::seq::IteratorRandom;

use super::customer::Customer;
use crate::history::Request;

/// Pause between two reads, in ms.
const PAUSE_MS: std::ops::Range<u64> = 20..200;

/// One read after the other.
pub(super) async fn live(mut customer: Customer) {
    while !customer.is_stopped() {
        if let Some(volume) = customer.lab.follower.names().into_iter().choose(&mut customer.random) {
            customer.ask(&Request::Read { volume }, true).await;
        }
        customer.pause(PAUSE_MS).await;
    }
}

//! A client that only reads: what the others have in hand, at any replica, all the time. An answer that is old is seen
//! only if somebody asks for it where it is given.

use std::time::Duration;

use super::client::Client;
use super::runtime::sleep_ms;

/// The pause between two reads, in ms.
const PAUSE_MS: (u64, u64) = (200, 2_000);
/// How long a read may take: who is asked in vain is not asked for long.
const DEADLINE: Duration = Duration::from_secs(2);

impl Client {
    /// Reads until the world is being healed.
    pub(crate) async fn read_on(mut self) {
        while self.is_chaos() {
            sleep_ms(self.rng.between(PAUSE_MS.0, PAUSE_MS.1)).await;
            let volumes = self.world.in_hand();
            if let Some(volume) = self.rng.pick(&volumes) {
                let volume = volume.clone();
                self.look_at(&volume, DEADLINE).await;
            }
        }
    }
}

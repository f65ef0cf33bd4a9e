//! A client whose volumes live for a moment, one after the other and all the time, as those of short jobs do: whatever is
//! wrong with the appliance meets volumes that are being made and deleted.

use super::client::Client;
use super::runtime::sleep_ms;

/// The pause between two volumes, in ms.
const PAUSE_MS: (u64, u64) = (500, 6_000);

impl Client {
    /// Makes and deletes until the world is being healed.
    pub(crate) async fn make_on(mut self) {
        while self.is_chaos() {
            sleep_ms(self.rng.between(PAUSE_MS.0, PAUSE_MS.1)).await;
            let Some(volume) = self.next_volume() else { return };
            self.short_life(&volume).await;
        }
    }
}

//! A volume that is asked for elsewhere before it is proven off where it was: its VM was given up there, is started
//! again on another node, and sometimes moved on from that one at once.

use super::client::{Client, Volume};

/// Of a thousand VMs that are started again elsewhere, so many are moved on before their first node is proven off.
const MOVED_ON_PER_MILLE: u64 = 500;

impl Client {
    /// Asks for another node, and perhaps for a third one, while `but` is being revoked. What is granted is given back.
    pub(super) async fn try_elsewhere(&mut self, volume: &Volume, but: usize) {
        let node = self.any_node(Some(but));
        if self.world.nodes[node].has(&volume.id) {
            return self.pause().await;
        }
        let mut asked = vec![node];
        if self.publish_once(volume, node).await.is_ok() {
            self.pause().await;
            if self.rng.per_mille(MOVED_ON_PER_MILLE) {
                asked.extend(self.move_on(volume, [but, node]).await);
            }
        }
        for node in asked {
            while self.unpublish_once(volume, node).await.is_err() {
                self.pause().await;
            }
        }
    }

    /// Asks for a node beside these two, which may be one too many; says which, if there is one.
    async fn move_on(&mut self, volume: &Volume, from: [usize; 2]) -> Option<usize> {
        let is_free = |node: &usize| !from.contains(node) && !self.world.nodes[*node].has(&volume.id);
        let free: Vec<usize> = (0..self.world.nodes.len()).filter(is_free).collect();
        let third = self.rng.pick(&free).copied()?;
        if self.publish_once(volume, third).await.is_ok() {
            self.pause().await;
        }
        Some(third)
    }
}

//! What a waiting request shares with residents, as the host reports it.

use super::View;
use crate::model::Slot;

impl View {
    /// Sets how much of a waiting request's prompt is resident; at least one token is left to compute.
    pub(crate) fn share(&mut self, slot: Slot, tokens: u32) {
        self.table[slot as usize].shared_prefix = tokens.min(self.request(slot).prompt - 1);
    }
}

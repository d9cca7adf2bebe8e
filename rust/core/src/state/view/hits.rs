//! What of a waiting request is in the KV cache already, as the host or the prefix cache says.

use super::View;
use crate::model::{Hit, Slot};

impl View {
    /// Sets what of a waiting request is in the KV cache; at least one token is left to compute.
    pub(crate) fn set_hit(&mut self, slot: Slot, hit: Hit) {
        let trusted = self.pool.trusts_shares();
        let request = &mut self.table[slot as usize];
        let computed = hit.computed.min(request.prefill_target() - 1);
        request.hit = Hit { computed, shared: if trusted { hit.shared.min(computed) } else { 0 } };
    }
}

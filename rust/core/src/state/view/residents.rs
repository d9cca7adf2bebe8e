//! The transitions of a request from its admission until it leaves the KV cache.

use super::View;
use crate::lookup::Place;
use crate::model::{Hit, Slot};
use crate::state::Phase;

impl View {
    /// Waiting → prefilling, with what of it is in the KV cache already. If its prompt is computed in the same step, to the
    /// end, it is not listed among those that prefill.
    #[inline(always)]
    pub(crate) fn admit(&mut self, slot: Slot, hit: Hit, to_the_end: bool) {
        self.dequeue(slot);
        self.residents.push_back(&mut self.table, slot);
        let request = &mut self.table[slot as usize];
        request.hit = hit;
        request.admitted = self.plans;
        if !self.limits.caches_prefixes {
            self.pool.share(request.shared_blocks(&self.layout));
        }
        request.phase = if request.receives { Phase::Receiving } else { Phase::Prefilling };
        let encoder_blocks = request.encoder_blocks;
        if request.receives {
            self.receiving.push(slot);
        } else if !to_the_end {
            self.prefilling.push(slot);
        }
        if encoder_blocks > 0 {
            self.take(encoder_blocks.into());
        }
    }

    /// Sets what a prefilling request has computed and holds.
    #[inline]
    pub(crate) fn set_computed(&mut self, slot: Slot, computed: u32, blocks: u32) {
        let request = &mut self.table[slot as usize];
        let held = std::mem::replace(&mut request.blocks, blocks);
        request.computed = computed;
        let change = i64::from(blocks) - i64::from(held);
        self.pool.take(change);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.unfill(slot, computed);
            let left = prefixes.leave_groups(slot, computed.saturating_sub(1), held);
            prefixes.take(change + i64::from(left));
            self.pool.count_once(prefixes.held());
        }
    }

    /// The KV of a waiting request will come from elsewhere.
    pub(crate) fn expect(&mut self, slot: Slot) {
        debug_assert_eq!(self.request(slot).phase, Phase::Waiting);
        self.table[slot as usize].receives = true;
    }

    /// Receiving → prefilling: its KV has arrived. False in any other phase.
    pub(crate) fn received(&mut self, slot: Slot) -> bool {
        let request = &mut self.table[slot as usize];
        let receives = request.phase == Phase::Receiving;
        if receives {
            (request.phase, request.receives) = (Phase::Prefilling, false);
            // Once it is preempted that KV is gone.
            request.hit.computed = request.hit.shared;
            self.receiving.retain(|&other| other != slot);
            self.relist_prefilling();
        }
        receives
    }

    /// Prefilling or parked → decoding. `set_computed` has placed all tokens of the request.
    #[inline(always)]
    pub(crate) fn join(&mut self, slot: Slot, lane: usize) {
        let request = &mut self.table[slot as usize];
        debug_assert!(matches!(request.phase, Phase::Prefilling | Phase::Parked));
        request.phase = Phase::Decoding;
        request.lane = lane as u16;
        let surplus = i64::from(request.blocks) - i64::from(self.layout.decoding(request.computed));
        request.base = self.lanes[lane].join(request.computed, surplus);
    }

    /// Places a member of a lane where the host says it is: at `kv` tokens, with the blocks it holds or needs.
    pub(crate) fn shift(&mut self, slot: Slot, kv: u32) {
        self.unfill(slot, kv);
        let (held, surplus) = (self.blocks(slot), self.surplus(slot));
        // Blocks taken for rejected tokens stay until the next step needs them, or frees them.
        let blocks = held.max(self.layout.after(kv.saturating_sub(1), kv));
        self.take(i64::from(blocks) - i64::from(held));
        let request = &mut self.table[slot as usize];
        let lane = &mut self.lanes[request.lane as usize];
        lane.leave(request.base, surplus);
        (request.computed, request.blocks) = (kv, blocks);
        request.base = lane.join(kv, i64::from(blocks) - i64::from(self.layout.decoding(kv)));
    }

    /// Takes requests that have joined a lane off the lists of those that prefill and of those that are parked.
    pub(crate) fn sweep(&mut self) {
        let table = &self.table;
        self.prefilling.retain(|&slot| table[slot as usize].phase == Phase::Prefilling);
        self.parked.retain(|&slot| table[slot as usize].phase == Phase::Parked);
    }

    /// Rebuilds the list of prefills, after a request that was taken for decoding turned out to be prefilling still.
    pub(crate) fn relist_prefilling(&mut self) {
        let table = &self.table;
        let prefills = |&slot: &Slot| table[slot as usize].phase == Phase::Prefilling;
        self.prefilling.clear();
        self.prefilling.extend(self.residents.iter(table).filter(prefills));
    }

    /// It has computed no more than this many tokens, whatever was planned.
    #[inline]
    fn unfill(&mut self, slot: Slot, tokens: u32) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.unfill(slot, tokens);
        }
    }

    /// Takes blocks for a resident, or gives some back (negative); of the prefix cache only what no plan has taken.
    #[inline]
    fn take(&mut self, blocks: i64) {
        self.pool.take(blocks);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.take(blocks);
            self.pool.count_once(prefixes.held());
        }
    }

    /// Every member of the lanes that run gains a token.
    #[inline]
    pub(crate) fn step_lanes(&mut self, runs: impl Fn(usize) -> bool) {
        for (_, lane) in self.lanes.iter_mut().enumerate().filter(|(lane, _)| runs(*lane)) {
            self.pool.take(lane.step());
        }
    }

    /// Decoding → parked.
    pub(crate) fn park(&mut self, slot: Slot) {
        self.leave_lane(slot, Phase::Parked);
        self.parked.push(slot);
    }

    /// Decoding → `phase` (parked or prefilling): leaves its lane, keeps its KV.
    #[inline(always)]
    pub(crate) fn leave_lane(&mut self, slot: Slot, phase: Phase) {
        let request = &mut self.table[slot as usize];
        debug_assert_eq!(request.phase, Phase::Decoding);
        let lane = &mut self.lanes[request.lane as usize];
        let kv = lane.kv_of(request.base);
        let needed = self.layout.decoding(kv);
        let held = if kv == request.computed { request.blocks } else { needed };
        lane.leave(request.base, i64::from(held) - i64::from(needed));
        (request.computed, request.blocks, request.phase) = (kv, held, phase);
    }

    /// Takes a resident that does not decode off the list of those like it, which are few.
    #[cold]
    fn unlist(&mut self, slot: Slot, phase: Phase) {
        let list = match phase {
            Phase::Prefilling => &mut self.prefilling,
            Phase::Parked => &mut self.parked,
            Phase::Receiving => &mut self.receiving,
            Phase::Waiting | Phase::Decoding => return,
        };
        list.retain(|&other| other != slot);
    }

    /// Frees the KV of a resident request, of which no more than `kv` tokens were computed, and takes it off the residents.
    #[inline(always)]
    fn release(&mut self, slot: Slot, kv: u32) {
        match self.request(slot).phase {
            Phase::Decoding => self.leave_lane(slot, Phase::Parked),
            phase => self.unlist(slot, phase),
        }
        let encoder_blocks = self.request(slot).encoder_blocks;
        if encoder_blocks > 0 {
            self.take(-i64::from(encoder_blocks));
        }
        // The prefix cache counts what is shared by itself.
        let shared = if self.limits.caches_prefixes { 0 } else { self.request(slot).shared_blocks(&self.layout) };
        let request = &mut self.table[slot as usize];
        let (blocks, computed) = (std::mem::take(&mut request.blocks), std::mem::take(&mut request.computed));
        self.pool.release(blocks, shared);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.release(slot, blocks, computed.min(kv));
            self.pool.count_once(prefixes.held());
        }
        self.residents.remove(&mut self.table, slot);
    }

    /// Resident → waiting, before its equals, after `kv` tokens were computed and with `kept` output tokens to recompute.
    /// `preempted` is false when the host refused an admission: the request then goes back to where it came from.
    pub(crate) fn send_back(&mut self, slot: Slot, kv: u32, kept: u32, preempted: bool) {
        self.release(slot, kv);
        let request = &mut self.table[slot as usize];
        request.kept = kept;
        request.phase = Phase::Waiting;
        request.preemptions = request.preemptions.saturating_add(u16::from(preempted));
        let hit = request.hit;
        self.set_hit(slot, hit);
        match self.queue_of(slot) {
            queue if queue < self.queues() || self.resumes_by_rank => {
                self.queues[queue].put_back(&mut self.table, slot);
            }
            queue => self.queues[queue].push_front(&mut self.table, slot),
        }
    }

    /// Any state → gone; `place` is where it was found.
    pub(crate) fn remove(&mut self, slot: Slot, place: Place) {
        match self.request(slot).phase {
            Phase::Waiting => self.dequeue(slot),
            _ => self.release(slot, u32::MAX),
        }
        let request = &mut self.table[slot as usize];
        // A slot without output left is free.
        request.max_tokens = 0;
        self.index.remove_at(place);
        self.vacant.push(slot);
    }
}

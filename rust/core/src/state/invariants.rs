//! The invariants of the state, recounted the slow way after each change in debug builds and in tests.

use crate::memory::Lane;
use crate::state::{Phase, View};

impl View {
    /// Recounts everything the slow way. Panics where a count is wrong.
    pub(crate) fn check(&self) {
        self.check_residents();
        self.check_waiting();
    }

    fn check_residents(&self) {
        let mut counted = 0;
        let mut recounted: Vec<Lane> = self.lanes().iter().map(Lane::emptied).collect();
        let (mut prefilling, mut receiving, mut parked) = (Vec::new(), Vec::new(), Vec::new());
        for slot in self.iter_residents() {
            let request = self.request(slot);
            let (kv, blocks) = (self.kv(slot), self.blocks(slot));
            assert_eq!(self.slot(request.id), Some(slot), "request {} is not where its id says", request.id);
            if self.layout().groups().is_empty() {
                assert!(self.layout().demand(kv) <= blocks, "request {} outgrew its blocks", request.id);
            }
            let named = self.named_blocks(slot);
            let most = if self.layout().groups().is_empty() { kv / self.pool().block_size() } else { blocks };
            assert!(named <= most, "request {} names what is not computed", request.id);
            counted += i64::from(blocks) + i64::from(request.encoder_blocks);
            match request.phase {
                Phase::Waiting => panic!("request {} waits among the residents", request.id),
                Phase::Receiving => {
                    assert!(request.receives, "request {} receives nothing", request.id);
                    receiving.push(slot);
                }
                Phase::Prefilling => {
                    assert!(kv < request.prefill_target(), "request {} has nothing to prefill", request.id);
                    prefilling.push(slot);
                }
                Phase::Parked => {
                    assert!(kv >= request.prefill_target(), "request {} parked early", request.id);
                    parked.push(slot);
                }
                Phase::Decoding => {
                    assert!(kv >= request.prefill_target(), "request {} decodes early", request.id);
                    let surplus = i64::from(blocks) - i64::from(self.layout().decoding(kv));
                    recounted[usize::from(request.lane)].join(kv, surplus);
                }
            }
        }
        assert_eq!(self.prefilling(), prefilling, "prefills in the order of their admission");
        assert_eq!(self.receiving(), receiving, "those that receive in the order of their admission");
        let mut listed = self.parked().to_vec();
        listed.sort_unstable();
        parked.sort_unstable();
        assert_eq!(listed, parked, "parked requests");
        assert_eq!(counted, self.pool().counted(), "blocks in use");
        for (lane, recounted) in self.lanes().iter().zip(&recounted) {
            assert_eq!(lane, recounted, "members, KV and block phases of a lane");
        }
    }

    fn check_waiting(&self) {
        let (mut tokens, mut waiting) = (0, 0);
        for queue in 0..=self.queues() {
            let mut length = 0;
            for slot in self.iter_waiting(queue) {
                let request = self.request(slot);
                assert_eq!(request.phase, Phase::Waiting, "request {} waits", request.id);
                assert_eq!(self.queue_of(slot), queue, "request {} stands in the wrong queue", request.id);
                assert_eq!((self.kv(slot), self.blocks(slot)), (0, 0), "request {} holds KV", request.id);
                tokens += u64::from(request.prefill_target());
                length += 1;
            }
            assert_eq!(self.waiting(queue), length, "length of queue {queue}");
            waiting += length;
        }
        assert_eq!(self.waiting_total(), waiting, "every request is in one place");
        assert_eq!(self.waiting_tokens(), tokens, "tokens in the queue");
    }
}

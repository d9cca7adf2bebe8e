//! The invariants of the state, recounted the slow way after each change in debug builds and in tests.

use crate::request::Phase;
use crate::view::View;

impl View {
    /// Recounts everything the slow way. Panics where a count is wrong.
    pub(crate) fn check(&self) {
        let mut counted = 0;
        let mut members = vec![(0u32, 0u64); self.lanes().len()];
        for slot in self.iter_residents() {
            let request = self.request(slot);
            assert_ne!(request.phase, Phase::Waiting, "a waiting request among the residents");
            assert!(
                self.blocks(slot) * self.pool().block_size() >= self.kv(slot),
                "request {} outgrew its blocks",
                request.id
            );
            counted += i64::from(self.blocks(slot));
            if request.phase == Phase::Decoding {
                let lane = &mut members[request.lane as usize];
                *lane = (lane.0 + 1, lane.1 + u64::from(self.kv(slot)));
            } else if request.phase == Phase::Prefilling {
                assert!(self.prefilling().contains(&slot), "request {} prefills unlisted", request.id);
            }
        }
        assert_eq!(counted, self.pool().counted(), "blocks in use");
        for (lane, (len, kv)) in self.lanes().iter().zip(members) {
            assert_eq!((lane.len(), lane.kv()), (len, kv), "members and KV of a lane");
        }
        assert_eq!(self.waiting_total() + self.residents(), self.len() as u32, "every request is in one place");
        for line in 0..=self.queues() {
            for slot in self.iter_waiting(line) {
                assert_eq!(self.request(slot).phase, Phase::Waiting);
                assert_eq!(self.line_of(slot), line, "a request in the wrong line");
                assert_eq!((self.kv(slot), self.blocks(slot)), (0, 0), "a waiting request holds KV");
            }
        }
    }
}

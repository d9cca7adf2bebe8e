//! The core's state against the ledger's.

use wait_core::config::{Order, PolicyName};
use wait_core::{Phase, RequestId, Stats};

use crate::host::Host;

impl Host {
    /// The core's state is what the ledger says.
    pub(crate) fn agree(&self) {
        let (view, ledger, core) = (self.core.view(), &self.ledger, &self.core);
        let named = |slots: Vec<u32>| slots.into_iter().map(|slot| view.request(slot).id).collect::<Vec<_>>();
        assert_eq!(view.len(), ledger.entries.len(), "requests present");
        assert_eq!(named(view.iter_residents().collect()), ledger.residents, "residents, in the order of admission");
        assert_eq!(
            named(view.iter_resuming().collect()),
            ledger.resuming,
            "the preempted, by priority, the last first"
        );
        let ranked = matches!(self.config.policy, PolicyName::Adaptive) || self.config.order != Order::Fcfs;
        let mut all = Vec::new();
        for queue in 0..view.queues() {
            let found = named(view.iter_waiting(queue).collect());
            let of_type = |id: &&RequestId| view.queues() == 1 || usize::from(ledger.entries[id].type_id) == queue;
            if !ranked {
                assert_eq!(found, ledger.queue.iter().filter(of_type).copied().collect::<Vec<_>>(), "queue {queue}");
            }
            all.extend(found);
        }
        let mut expected = ledger.queue.clone();
        expected.sort_unstable();
        all.sort_unstable();
        assert_eq!(all, expected, "the other waiting requests");
        let (mut decoding, mut decoding_kv) = (0, 0);
        for (&id, entry) in &ledger.entries {
            let slot = view.slot(id).unwrap();
            let phase = view.request(slot).phase;
            let expected = (entry.kv, entry.blocks, entry.stage(), entry.target());
            let found = (view.kv(slot), view.blocks(slot), view.stage(slot), view.request(slot).prefill_target());
            assert_eq!(found, expected, "KV, blocks, stage and prefill of request {id}");
            let stands = match phase {
                Phase::Waiting => !entry.resident,
                Phase::Receiving => entry.receiving(),
                Phase::Prefilling => entry.resident && !entry.emits() && !entry.receives,
                Phase::Decoding | Phase::Parked => entry.emits(),
            };
            assert!(stands && (phase == Phase::Parked) == entry.parked, "request {id} is {phase:?}: {entry:?}");
            decoding += u32::from(phase == Phase::Decoding);
            decoding_kv += if phase == Phase::Decoding { u64::from(entry.kv) } else { 0 };
        }
        let lanes = view.lanes().iter().fold((0, 0), |(len, kv), lane| (len + lane.len(), kv + lane.kv()));
        assert_eq!(lanes, (decoding, decoding_kv), "members and KV of all lanes");
        let (queued, tokens) = self.queued();
        assert_eq!((u64::from(view.waiting_total()), view.waiting_tokens()), (queued, tokens), "the queues");
        assert_eq!(view.pool().capacity(), ledger.pool.capacity);
        let used = view.pool().used();
        if self.config.prefix_caching {
            // A block that two have computed at the same time is there twice.
            let (least, most) = (ledger.distinct(), ledger.held());
            assert!((least..=most).contains(&used), "{used} blocks in use, not {least} to {most}");
        } else {
            assert_eq!(used, ledger.pool.used(ledger.held()), "blocks in use: {:?}, {:?}", view.pool(), ledger.pool);
        }
        let stats = Stats { holds: core.stats().holds, ..ledger.stats };
        assert_eq!(*core.stats(), stats);
    }
}

//! What must hold of every plan, whatever the host has done before.

use wait_core::config::PolicyName;
use wait_core::{Chunk, HoldReason, Origin, Phase, RequestId, Slot, View};

use crate::host::Host;

pub(crate) fn sequence(view: &View, slots: impl Iterator<Item = Slot>) -> Vec<RequestId> {
    slots.map(|slot| view.request(slot).id).collect()
}

impl Host {
    /// Compares the plan just made with the state before it.
    pub(crate) fn check(&self, before: &View) {
        self.check_limits(before);
        self.check_order(before);
        self.check_holds();
    }

    fn check_limits(&self, before: &View) {
        let (plan, view) = (self.core.last_plan(), self.core.view());
        let config = &self.config;
        // Decodes always run, even where the host has admitted more than there are slots; and Vidur's prefill-first pads
        // its budget, and admits a prompt that is too long for it alone.
        let most = match plan.chunks() {
            [_] if config.policy == PolicyName::PrefillFirst => u32::MAX,
            _ => config.token_budget.max(plan.decodes()),
        };
        assert!(plan.tokens() <= plan.token_budget() && plan.token_budget() <= most, "token budget");
        assert!(view.residents() <= config.max_num_seqs.max(before.residents()), "seats");
        assert_eq!(plan.residents() as usize, self.ledger.residents.len());
        if !config.host_preempts && !self.paused {
            // A host may report that others use the cache: then there is no resident to preempt.
            let idle = self.ledger.residents.is_empty();
            assert!(view.pool().used() <= i64::from(self.ledger.pool.capacity) || idle, "the plan fits");
            assert!(plan.free() >= 0 || idle, "the plan knows that it fits");
        }
        let victims = plan.preempted();
        let admits = plan.chunks().iter().any(|chunk| chunk.origin != Origin::Resident);
        assert!(victims.is_empty() || !admits, "a plan that preempts does not admit");
        assert!(!self.paused || plan.is_empty() && victims.is_empty(), "a paused engine does nothing");
    }

    /// The preempted first, then each queue in its order; `vllm`: all in one order.
    fn check_order(&self, before: &View) {
        let admitted = |origin| {
            let chunks = self.core.last_plan().chunks().iter().filter(move |chunk| chunk.origin == origin);
            chunks.map(|chunk: &Chunk| chunk.id).collect::<Vec<_>>()
        };
        let (resumed, fresh) = (admitted(Origin::Resumed), admitted(Origin::Admitted));
        // A request that has become too large for the cache is skipped.
        let fits_alone = |&slot: &Slot| {
            let (request, capacity) = (before.request(slot), before.pool().capacity());
            before.layout().demand(request.prefill_target()) + request.encoder_blocks <= capacity
        };
        let waiting = |queue: usize| sequence(before, before.iter_waiting(queue).filter(fits_alone));
        let kind = |id: &RequestId| before.request(before.slot(*id).unwrap()).type_id;
        if self.config.policy == PolicyName::Wait {
            for queue in 0..before.queues() {
                let of_line = |id: &&u64| usize::from(kind(id)) == queue;
                let fresh: Vec<u64> = fresh.iter().filter(of_line).copied().collect();
                assert_eq!(fresh[..], waiting(queue)[..fresh.len()], "each queue first come, first served");
            }
            let resuming = waiting(before.queues());
            assert_eq!(resumed[..], resuming[..resumed.len()], "the preempted in their order");
            assert!(fresh.is_empty() || resumed.len() == resuming.len(), "the preempted before all others");
        } else if self.config.policy == PolicyName::Vllm {
            let mut all = [waiting(before.queues()), waiting(0)].concat();
            all.sort_by_key(|id| self.ledger.entries[id].priority);
            let chunks = self.core.last_plan().chunks().iter().filter(|chunk| chunk.origin != Origin::Resident);
            let admitted: Vec<_> = chunks.map(|chunk| chunk.id).collect();
            assert_eq!(admitted[..], all[..admitted.len()], "by priority, the preempted before their equals");
        } else {
            // Those in time, those found late now, and those found late before, the preempted of each kind first.
            let tenants = self.config.tenant_weights.len().max(1);
            let is_late = |id: &RequestId| usize::from(before.request(before.slot(*id).unwrap()).queue()) >= tenants;
            let (late, resuming): (Vec<_>, Vec<_>) =
                waiting(before.queues()).into_iter().partition(|id| before.queues() > tenants && is_late(id));
            let of_kind =
                |kind: &[RequestId]| resumed.iter().filter(|id| kind.contains(id)).copied().collect::<Vec<_>>();
            for kind in [&resuming, &late] {
                let resumed = of_kind(kind);
                assert_eq!(resumed[..], kind[..resumed.len()], "the preempted in their order");
            }
            let resumed = of_kind(&resuming);
            let plan = self.core.last_plan();
            let mut moved = sequence(before, plan.moved().iter().map(|&(slot, _)| slot).filter(fits_alone));
            let left = sequence(before, plan.refused().iter().map(|refusal| refusal.slot));
            let mut queues: Vec<Vec<RequestId>> = (0..before.queues()).map(waiting).collect();
            for queue in &mut queues {
                queue.retain(|id| !moved.contains(id) && !left.contains(id));
            }
            queues.push(std::mem::take(&mut moved));
            let mut seen = 0;
            for queue in queues {
                let fresh: Vec<u64> = fresh.iter().filter(|id| queue.contains(id)).copied().collect();
                seen += fresh.len();
                if self.config.skip_ahead == 0 {
                    assert_eq!(fresh[..], queue[..fresh.len()], "by rank, first come, first served");
                } else {
                    let mut queue = queue.into_iter();
                    assert!(
                        fresh.iter().all(|id| queue.any(|other| other == *id)),
                        "requests that overtake do so in order"
                    );
                }
            }
            assert_eq!(seen, fresh.len());
            assert!(fresh.is_empty() || resumed.len() == resuming.len(), "the preempted before all others");
        }
    }

    fn check_holds(&self) {
        let (plan, view) = (self.core.last_plan(), self.core.view());
        for &id in self.ledger.entries.keys() {
            let slot = view.slot(id).unwrap();
            let waits = match view.request(slot).phase {
                Phase::Waiting | Phase::Parked | Phase::Receiving => true,
                Phase::Decoding => !plan.runs(usize::from(view.request(slot).lane)),
                Phase::Prefilling => plan.chunks().iter().all(|chunk| chunk.slot != slot),
            };
            // A request that joined its lane in this iteration has run.
            let ran = plan.chunks().iter().any(|chunk| chunk.slot == slot && chunk.tokens > 0);
            assert_eq!(self.core.explain(id).is_some(), waits && !ran, "request {id} is explained if it waits");
            let paused = self.core.explain(id).is_some_and(|hold| hold.reason == HoldReason::EnginePaused);
            assert_eq!(paused, self.paused);
        }
        let stands = |slot: Slot| self.core.explain(view.request(slot).id).is_some();
        let mut standing: Vec<_> = view.iter_residents().filter(|&slot| stands(slot)).collect();
        let mut listed: Vec<_> = self.core.paused_ids().into_iter().map(|id| view.slot(id).unwrap()).collect();
        standing.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, standing, "residents that do not run are listed");
    }
}

use super::*;
use crate::config::Config;
use crate::model::Request;

struct World {
    view: View,
    plan: Plan,
}

/// Ten blocks of four tokens, two lanes, six slots, a budget of sixteen tokens.
fn world() -> World {
    world_that(false)
}

fn world_that(reserves_prompts: bool) -> World {
    let config = Config { kv_blocks: 10, block_size: 4, max_num_seqs: 6, token_budget: 16, ..Config::default() };
    let view = View::new(&config, 2, 1, reserves_prompts);
    World { plan: Plan::new(&view), view }
}

impl World {
    fn waiting(&mut self, id: RequestId, prompt: u32) -> Slot {
        self.view.insert(self.view.locate(id), &Request { id, prompt, ..Request::default() }, 100, 0, 0, 0)
    }

    fn prefilling(&mut self, id: RequestId, prompt: u32, computed: u32) -> Slot {
        let slot = self.waiting(id, prompt);
        self.view.admit(slot, Hit::default(), false);
        self.view.set_computed(slot, computed, self.view.layout().after(0, computed));
        slot
    }

    fn decoding(&mut self, id: RequestId, kv: u32, lane: usize) -> Slot {
        let slot = self.prefilling(id, kv, kv);
        self.view.join(slot, lane);
        self.view.sweep();
        slot
    }

    fn parked(&mut self, id: RequestId, kv: u32) -> Slot {
        let slot = self.decoding(id, kv, 1);
        self.view.park(slot);
        slot
    }

    fn begin(&mut self) -> (&View, &mut Plan) {
        self.plan.begin(&self.view);
        (&self.view, &mut self.plan)
    }
}

/// (free blocks, tokens, decodes, residents)
fn sums(plan: &Plan) -> (i64, u32, u32, u32) {
    (plan.free(), plan.tokens(), plan.decodes(), plan.residents())
}

#[test]
fn an_empty_plan_leaves_everything_as_it_is() {
    let mut world = world();
    world.decoding(1, 5, 0);
    let (_, plan) = world.begin();
    assert_eq!(sums(plan), (8, 0, 0, 1));
    assert_eq!((plan.is_empty(), plan.tokens_left(), plan.token_budget(), plan.wake_ns()), (true, 16, 16, None));
    assert_eq!(
        (plan.runs(0), plan.runs(1), plan.hold(0), plan.hold(1), plan.hold(9)),
        (false, false, None, None, None)
    );
}

#[test]
fn a_lane_that_decodes_takes_a_block_for_each_full_member() {
    let mut world = world();
    world.decoding(1, 4, 0);
    world.decoding(2, 5, 0);
    world.decoding(3, 8, 0);
    world.decoding(4, 4, 1);
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    assert_eq!(sums(plan), (10 - 6 - 2, 3, 3, 4));
    plan.measure();
    assert_eq!(*plan.shape(), BatchShape { decodes: 3, decode_kv: 5 + 6 + 9, ..BatchShape::default() });
}

#[test]
fn a_parked_request_gives_back_its_token_and_its_block() {
    let mut world = world();
    let full = world.decoding(1, 4, 0);
    world.decoding(2, 5, 0);
    let still = world.decoding(3, 4, 1);
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    plan.park(view, full);
    plan.park(view, still); // its lane stands: it was to decode nothing
    assert_eq!(sums(plan), (10 - 4, 1, 1, 3));
    assert_eq!(plan.parked(), [full, still]);
    plan.measure();
    assert_eq!((plan.shape().decodes, plan.shape().decode_kv), (1, 6));
}

#[test]
fn an_unparked_request_decodes_with_its_lane() {
    let mut world = world();
    world.decoding(1, 5, 0);
    let (full, half) = (world.parked(2, 8), world.parked(3, 6));
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    plan.unpark(view, full, 0);
    plan.unpark(view, half, 0);
    assert_eq!(sums(plan), (10 - 6 - 1, 3, 3, 3));
    assert_eq!(plan.unparked(), [(full, 0), (half, 0)]);
    plan.measure();
    assert_eq!((plan.shape().decodes, plan.shape().decode_kv), (3, 6 + 9 + 7));
}

#[test]
fn preemption_begins_with_the_last_admitted() {
    let mut world = world();
    for id in 1..=5 {
        world.decoding(id, 8, 0);
    }
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    assert_eq!(sums(plan), (-5, 5, 5, 5));
    plan.make_room(view);
    // Each preemption gives two blocks and the one it was about to take.
    assert_eq!(sums(plan), (1, 3, 3, 3));
    assert_eq!(plan.preempted().iter().map(|&(_, id)| id).collect::<Vec<_>>(), [5, 4]);
    plan.measure();
    assert_eq!((plan.shape().decodes, plan.shape().decode_kv), (3, 27));
}

#[test]
fn a_lane_planned_after_a_preemption_counts_no_victim() {
    let mut world = world();
    for id in 1..=4 {
        world.decoding(id, 8, 0);
    }
    let victim = world.decoding(5, 8, 1);
    world.view.pool_mut().set_capacity(9);
    let (view, plan) = world.begin();
    plan.make_room(view);
    assert_eq!((plan.preempted(), plan.free()), (&[(victim, 5)][..], 1));
    plan.decode(view, 1);
    assert_eq!(sums(plan), (1, 0, 0, 4));
    plan.measure();
    assert_eq!(*plan.shape(), BatchShape::default());
}

#[test]
fn victims_take_their_share_of_the_plan_with_them() {
    let mut world = world();
    world.decoding(1, 16, 0);
    let prefill = world.prefilling(2, 9, 4);
    let parked = world.decoding(3, 8, 0);
    let unparked = world.parked(4, 8);
    let (view, plan) = world.begin();
    assert_eq!(plan.free(), 1);
    plan.decode(view, 0);
    plan.park(view, parked);
    plan.unpark(view, unparked, 0);
    plan.continue_prefill(view, prefill);
    // 16 → 17 takes one block, 8 → 9 one, 4 → 9 two: three too many. Preempting the unparked gives three.
    assert_eq!(plan.preempted(), [(unparked, 4)]);
    assert_eq!(sums(plan), (0, 1 + 5, 1, 3));
    assert_eq!((plan.unparked().len(), plan.parked()), (0, &[parked][..]));
    plan.free = -1;
    plan.make_room(view);
    assert_eq!((sums(plan), plan.parked().len()), ((1, 6, 1, 2), 0));
    plan.free = -1;
    plan.make_room(view);
    assert_eq!((sums(plan), plan.chunks().len()), ((2, 1, 1, 1), 0));
    plan.free = -9;
    plan.make_room(view);
    assert_eq!((sums(plan), plan.preempted().len()), ((-4, 0, 0, 0), 4), "no request is left to preempt");
}

#[test]
fn a_host_that_preempts_by_itself_is_left_to_it() {
    let mut world = world();
    let config = Config { kv_blocks: 1, block_size: 4, host_preempts: true, ..Config::default() };
    world.view = View::new(&config, 1, 1, false);
    world.decoding(1, 4, 0);
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    plan.make_room(view);
    assert_eq!((plan.preempted().len(), plan.free()), (0, -1));
}

#[test]
fn prefills_go_on_in_order_as_far_as_the_budget_reaches() {
    let mut world = world();
    world.decoding(1, 5, 0);
    let (a, b, c) = (world.prefilling(2, 8, 2), world.prefilling(3, 20, 1), world.prefilling(4, 9, 1));
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    plan.continue_prefills(view);
    let chunk = |slot, id, start, tokens, blocks, last| Chunk {
        slot,
        id,
        hit: Hit::default(),
        start,
        tokens,
        blocks,
        last,
        origin: Origin::Resident,
    };
    assert_eq!(plan.chunks(), [chunk(a, 2, 2, 6, 2, true), chunk(b, 3, 1, 9, 3, false)]);
    assert_eq!((sums(plan), plan.tokens_left()), ((10 - 5 - 1 - 2, 16, 1, 4), 0));
    plan.continue_prefill(view, c);
    assert_eq!(plan.chunks().len(), 2, "no token is left for the third");
    plan.measure();
    let expected = BatchShape {
        decodes: 1,
        decode_kv: 6,
        prefill_tokens: 15,
        prefill_kv: 8 + 10,
        prefill_attention: 6 * (4 + 6) + 9 * (2 + 9),
    };
    assert_eq!(*plan.shape(), expected);
}

#[test]
fn a_prefill_that_finds_no_room_preempts_the_last_even_itself() {
    let mut world = world();
    world.decoding(1, 28, 0);
    let (a, b) = (world.prefilling(2, 12, 4), world.prefilling(3, 12, 4));
    let (view, plan) = world.begin();
    plan.decode(view, 0);
    plan.continue_prefills(view);
    assert_eq!(plan.preempted(), [(b, 3), (a, 2)]);
    assert_eq!((sums(plan), plan.chunks().len()), ((2, 1, 1, 1), 0));
}

#[test]
fn an_admission_takes_its_chunk_or_reserves_its_prompt() {
    for (reserves, blocks) in [(false, 1), (true, 3)] {
        let mut world = world_that(reserves);
        let a = world.waiting(1, 10);
        let again = world.prefilling(3, 6, 2);
        world.view.send_back(again, u32::MAX, 1, true);
        let (view, plan) = world.begin();
        plan.admit(view, a, 3);
        plan.admit(view, again, 99);
        assert_eq!(sums(plan), (10 - blocks - 2, 3 + 7, 0, 2));
        let of = |c: &Chunk| (c.id, c.start, c.tokens, i64::from(c.blocks), c.last, c.origin);
        let chunks: Vec<_> = plan.chunks().iter().map(of).collect();
        assert_eq!(chunks, [(1, 0, 3, blocks, false, Origin::Admitted), (3, 0, 7, 2, true, Origin::Resumed)]);
    }
}

#[test]
fn a_reserved_prompt_is_not_paid_twice() {
    let mut world = world_that(true);
    let slot = world.prefilling(1, 10, 3);
    world.view.set_computed(slot, 3, 3);
    let (view, plan) = world.begin();
    plan.continue_prefill(view, slot);
    assert_eq!((plan.free(), plan.chunks()[0].blocks, plan.chunks()[0].last), (7, 3, true));
}

#[test]
fn the_seat_check_names_what_is_missing() {
    let mut world = world();
    for id in 1..=5 {
        world.decoding(id, 1, 0);
    }
    let slot = world.waiting(6, 40);
    let (view, plan) = world.begin();
    assert_eq!(plan.seat(view), Ok(()));
    plan.admit(view, slot, 1);
    assert_eq!(plan.seat(view), Err(Hold { reason: HoldReason::BatchCap, needs: 7.0, limit: 6.0 }));
    plan.begin(view);
    plan.set_budget(view, 5);
    plan.decode(view, 0);
    assert_eq!(plan.seat(view), Err(Hold { reason: HoldReason::BatchCap, needs: 6.0, limit: 5.0 }));
}

#[test]
fn the_memory_check_counts_the_whole_prompt_and_the_spare() {
    let mut world = world();
    world.decoding(1, 12, 0);
    let slot = world.waiting(2, 25);
    let (view, plan) = world.begin();
    assert_eq!(plan.fits(view, slot, 0), Ok(()));
    assert_eq!(plan.fits(view, slot, 1), Err(Hold { reason: HoldReason::NoBlocks, needs: 8.0, limit: 7.0 }));
}

#[test]
fn a_budget_may_fall_but_not_rise_and_the_earliest_call_counts() {
    let mut world = world();
    let (view, plan) = world.begin();
    plan.set_budget(view, 99);
    assert_eq!(plan.token_budget(), 16);
    plan.set_budget(view, 3);
    assert_eq!((plan.token_budget(), plan.tokens_left()), (3, 3));
    plan.wake_at(50);
    plan.wake_at(20);
    plan.wake_at(30);
    assert_eq!(plan.wake_ns(), Some(20));
    plan.hold_queue(1, Hold::new(HoldReason::NoBlocks, 3, 2));
    assert_eq!((plan.hold(0), plan.hold(1).map(|hold| hold.limit)), (None, Some(2.0)));
    plan.begin(view);
    assert_eq!((plan.wake_ns(), plan.hold(1), plan.token_budget()), (None, None, 16));
}

#[test]
fn every_reason_has_its_own_name_and_place() {
    let names: std::collections::BTreeSet<_> = HoldReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), HoldReason::ALL.len());
    for (place, reason) in HoldReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, place);
    }
}

use super::*;
use crate::model::Hit;

fn view(kv_blocks: u32, block_size: u32, lanes: usize, queues: usize) -> View {
    View::new(&Config { kv_blocks, block_size, ..Config::default() }, lanes, queues, false)
}

fn add(view: &mut View, id: RequestId, prompt: u32, type_id: u16) -> Slot {
    let slot = view.insert(
        view.locate(id),
        &Request { id, prompt, ..Request::default() },
        100,
        type_id,
        type_id.min(view.queues() as u16 - 1),
        0,
    );
    view.check();
    slot
}

fn remove(view: &mut View, slot: Slot) {
    view.remove(slot, view.locate(view.request(slot).id));
}

/// Admits a request, computes its whole prompt and lets it join a lane.
fn run(view: &mut View, slot: Slot, lane: usize) {
    view.admit(slot, Hit::default(), false);
    let target = view.request(slot).prefill_target();
    view.set_computed(slot, target, view.layout().after(0, target));
    view.join(slot, lane);
    view.sweep();
    view.check();
}

fn ids(view: &View, slots: impl Iterator<Item = Slot>) -> Vec<RequestId> {
    slots.map(|slot| view.request(slot).id).collect()
}

#[test]
fn a_new_request_waits_in_the_queue_of_its_type() {
    let mut view = view(10, 4, 2, 2);
    let (a, b, c) = (add(&mut view, 7, 5, 0), add(&mut view, 8, 6, 1), add(&mut view, 9, 7, 0));
    assert_eq!((view.len(), view.is_empty(), view.waiting_total(), view.waiting_tokens()), (3, false, 3, 18));
    assert_eq!([view.waiting(0), view.waiting(1), view.resuming()], [2, 1, 0]);
    assert_eq!([view.head(0), view.head(1)], [Some(a), Some(b)]);
    assert_eq!(ids(&view, view.iter_waiting(0)), [7, 9]);
    assert_eq!((view.slot(9), view.slot(1)), (Some(c), None));
    assert_eq!((view.kv(a), view.blocks(a), view.stage(a), view.next_blocks(a)), (0, 0, 0, 1));
}

#[test]
fn a_type_may_be_a_label_and_no_queue() {
    let mut view = view(10, 4, 1, 1);
    let slot = add(&mut view, 1, 5, 40);
    assert_eq!((view.queue_of(slot), view.request(slot).type_id, view.waiting(0)), (0, 40, 1));
}

#[test]
fn a_request_that_changes_its_queue_stands_there_by_rank_and_comes_back_there() {
    let mut view = view(20, 4, 1, 2);
    let mut ranked =
        |id, rank| view.insert(view.locate(id), &Request { id, prompt: 5, ..Request::default() }, 100, 0, 0, rank);
    let slots = [ranked(1, 3), ranked(2, 5), ranked(3, 7), ranked(4, 5)];
    for slot in [slots[2], slots[1], slots[0]] {
        view.change_queue(slot, 1);
        view.check();
    }
    assert_eq!((ids(&view, view.iter_waiting(0)), ids(&view, view.iter_waiting(1))), (vec![4], vec![1, 2, 3]));
    view.admit(slots[1], Hit::default(), false);
    view.send_back(slots[1], u32::MAX, 0, false);
    view.check();
    assert_eq!(ids(&view, view.iter_waiting(1)), [1, 2, 3]);
    remove(&mut view, slots[2]);
    view.check();
    assert_eq!((view.waiting(0), view.waiting(1), view.waiting_tokens()), (1, 2, 15));
}

#[test]
fn a_shared_prefix_leaves_at_least_one_token_to_compute() {
    let mut view = view(10, 4, 1, 1);
    let request = Request { id: 1, prompt: 5, hit: Hit { computed: 9, shared: 9, evicted: 0 }, ..Request::default() };
    let slot = view.insert(view.locate(request.id), &request, 10, 0, 0, 0);
    assert_eq!(
        view.request(slot).hit,
        Hit { computed: 4, shared: 0, evicted: 0 },
        "a host that reports no free blocks pays"
    );
    view.pool_mut().reconcile(10);
    view.set_hit(slot, request.hit);
    assert_eq!(view.request(slot).hit, Hit { computed: 4, shared: 4, evicted: 0 });
}

#[test]
fn a_prefill_in_chunks_holds_what_it_computed() {
    let mut view = view(10, 4, 1, 1);
    let slot = add(&mut view, 1, 10, 0);
    view.admit(slot, Hit::default(), false);
    view.set_computed(slot, 3, 1);
    view.check();
    assert_eq!((view.residents(), view.waiting_total(), view.prefilling()), (1, 0, &[slot][..]));
    assert_eq!((view.kv(slot), view.blocks(slot), view.stage(slot), view.pool().free()), (3, 1, 0, 9));
    view.set_computed(slot, 10, 3);
    view.join(slot, 0);
    view.sweep();
    view.check();
    assert_eq!((view.request(slot).phase, view.prefilling().len()), (Phase::Decoding, 0));
    assert_eq!((view.kv(slot), view.blocks(slot), view.stage(slot), view.pool().free()), (10, 3, 1, 7));
}

#[test]
fn a_step_moves_every_member_of_its_lane_and_no_other() {
    let mut view = view(10, 4, 2, 1);
    let (a, b) = (add(&mut view, 1, 4, 0), add(&mut view, 2, 6, 0));
    run(&mut view, a, 0);
    run(&mut view, b, 1);
    assert_eq!((view.next_blocks(a), view.next_blocks(b), view.pool().used()), (1, 0, 3));
    view.step_lanes(|lane| lane == 0);
    view.check();
    assert_eq!((view.kv(a), view.stage(a), view.kv(b), view.stage(b)), (5, 2, 6, 1));
    assert_eq!((view.blocks(a), view.pool().used(), view.next_blocks(a)), (2, 4, 0));
}

#[test]
fn a_parked_request_keeps_its_kv_and_joins_again() {
    let mut view = view(10, 4, 2, 1);
    let (a, b) = (add(&mut view, 1, 7, 0), add(&mut view, 2, 3, 0));
    run(&mut view, a, 0);
    run(&mut view, b, 0);
    view.step_lanes(|lane| lane == 0);
    view.park(a);
    view.check();
    view.step_lanes(|lane| lane == 0);
    assert_eq!((view.request(a).phase, view.kv(a), view.blocks(a), view.stage(a)), (Phase::Parked, 8, 2, 2));
    view.join(a, 1);
    view.sweep();
    view.check();
    assert_eq!((view.lanes()[1].kv(), view.next_blocks(a), view.stage(a)), (8, 1, 2));
    assert_eq!(ids(&view, view.iter_residents()), [1, 2], "the order of admission stays");
}

#[test]
fn preempted_requests_go_first_with_what_they_keep() {
    let mut view = view(10, 4, 1, 1);
    let (a, b, c) = (add(&mut view, 1, 4, 0), add(&mut view, 2, 4, 0), add(&mut view, 3, 4, 0));
    run(&mut view, a, 0);
    run(&mut view, b, 0);
    view.step_lanes(|lane| lane == 0);
    assert_eq!(view.last_resident(), Some(b));
    assert_eq!((view.resident_before(b), view.resident_before(a)), (Some(a), None));
    for slot in [b, a] {
        view.send_back(slot, view.kv(slot), view.stage(slot), true);
        view.check();
    }
    assert_eq!(ids(&view, view.iter_resuming()), [1, 2], "the one preempted last was admitted first");
    assert_eq!((view.resuming(), view.waiting(0), view.residents(), view.pool().used()), (2, 1, 0, 0));
    let request = view.request(a);
    assert_eq!((request.kept, request.prefill_target(), request.preemptions, request.phase), (2, 6, 1, Phase::Waiting));
    assert_eq!((view.stage(a), view.waiting_tokens(), view.head(0)), (2, 16, Some(c)));
    run(&mut view, a, 0);
    assert_eq!((view.kv(a), view.stage(a)), (6, 3), "the prefill of 6 tokens emits the third");
}

#[test]
fn a_refused_admission_returns_to_where_it_stood() {
    let mut view = view(10, 4, 1, 2);
    let (a, b) = (add(&mut view, 1, 4, 1), add(&mut view, 2, 4, 1));
    view.admit(a, Hit::default(), false);
    view.set_computed(a, 2, 1);
    view.send_back(a, u32::MAX, 0, false);
    view.check();
    assert_eq!((view.head(1), view.waiting(1), view.resuming(), view.prefilling().len()), (Some(a), 2, 0, 0));
    assert_eq!(view.request(b).preemptions + view.request(a).preemptions, 0);
}

#[test]
fn requests_leave_from_every_phase_and_their_place_is_reused() {
    for phase in [Phase::Waiting, Phase::Prefilling, Phase::Decoding, Phase::Parked] {
        let mut view = view(10, 4, 1, 1);
        let (a, b) = (add(&mut view, 1, 6, 0), add(&mut view, 2, 6, 0));
        run(&mut view, b, 0);
        if phase == Phase::Prefilling {
            view.admit(a, Hit::default(), false);
            view.set_computed(a, 5, 2);
        } else if phase != Phase::Waiting {
            run(&mut view, a, 0);
        }
        if phase == Phase::Parked {
            view.park(a);
        }
        assert_eq!(view.request(a).phase, phase);
        remove(&mut view, a);
        view.check();
        assert_eq!((view.len(), view.slot(1), view.pool().used(), view.residents()), (1, None, 2, 1), "{phase:?}");
        assert_eq!(add(&mut view, 3, 1, 0), a, "a vacant place is taken first");
        assert_eq!((view.request(a).id, view.kv(a), view.waiting(0)), (3, 0, 1));
    }
}

#[test]
fn a_request_found_to_prefill_still_is_listed_in_the_order_of_admission() {
    let mut view = view(10, 4, 1, 1);
    let (a, b) = (add(&mut view, 1, 6, 0), add(&mut view, 2, 6, 0));
    run(&mut view, a, 0);
    view.admit(b, Hit::default(), false);
    view.set_computed(b, 2, 1);
    view.leave_lane(a, Phase::Prefilling);
    view.set_computed(a, 5, 2);
    view.relist_prefilling();
    view.check();
    assert_eq!(view.prefilling(), [a, b]);
}

#[test]
fn a_chunk_of_the_only_resident_keeps_the_hosts_correction() {
    let mut view = view(10, 4, 1, 1);
    let slot = add(&mut view, 1, 20, 0);
    view.admit(slot, Hit::default(), false);
    view.set_computed(slot, 8, 2);
    view.pool_mut().reconcile(9); // one of its two blocks is shared
    view.set_computed(slot, 12, 3);
    assert_eq!(view.pool().free(), 8);
    remove(&mut view, slot);
    assert_eq!(view.pool().free(), 10);
}

#[test]
fn the_clock_never_goes_back() {
    let mut view = view(10, 4, 1, 1);
    for (reading, now) in [(5, 5), (3, 5), (9, 9), (0, 9)] {
        view.advance_clock(reading);
        assert_eq!(view.now_ns(), now);
    }
}

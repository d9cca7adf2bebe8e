use super::*;
use crate::model::Request;

/// In a debug build the plan panics, in a release build it is replaced and counted.
#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "breaks a rule: a prompt is computed that is computed already"))]
fn a_plan_that_admits_twice_corrupts_nothing() {
    let mut core = Scheduler::new(&Config { kv_blocks: 8, block_size: 4, ..Config::default() }).unwrap();
    for id in [7, 8] {
        core.add(&Request { id, prompt: 6, ..Request::default() }).unwrap();
    }
    let slot = core.view.slot(7).unwrap();
    core.plan.begin(&core.view);
    (0..2).for_each(|_| core.plan.admit(&core.view, slot, 6));
    core.guard();
    core.carry_out();
    core.view.check();
    assert_eq!(core.last_plan().chunks().iter().map(|chunk| chunk.id).collect::<Vec<_>>(), [7, 8]);
    assert_eq!((core.view.residents(), core.view.pool().used()), (2, 4));
    assert_eq!((core.stats.corrected_plans, core.stats.admitted), (1, 2));
    core.plan(0);
    assert_eq!((core.last_plan().decodes(), core.stats.corrected_plans), (2, 1));
}

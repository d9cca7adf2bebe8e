//! A steady state for an instruction counter: `step CASE RUNNING WAITING ITERATIONS`.
//!
//! Every part of a step is exercised: plan, one finish, one admission, one arrival. Counting two runs with different
//! ITERATIONS and subtracting leaves the cost of the steps alone.

#[path = "../tests/common/steady.rs"]
mod steady;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |i: usize| arguments[i].parse::<u64>().expect("a number");
    let mut engine = steady::Engine::loaded(&arguments[1], number(2), number(3));
    let before = *engine.scheduler.stats();
    for _ in 0..number(4) {
        engine.step(1);
    }
    let (stats, view) = (engine.scheduler.stats(), engine.scheduler.view());
    println!(
        "{} residents, {} waiting; {} admitted, {} finished, {} preempted; held {:?}",
        view.residents(),
        view.waiting_total(),
        stats.admitted - before.admitted,
        stats.finished - before.finished,
        stats.preemptions - before.preemptions,
        engine.scheduler.last_plan().hold(0),
    );
}

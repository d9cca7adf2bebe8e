//! What was recorded of several engines, as of one.

use wait_core::Stats;

use crate::record::{NEVER_NS, Run, Sample};
use crate::recorder::SAMPLES;

/// Counts are summed, and peaks: each engine has its own at another time. What was learned is kept of a single engine only.
pub(super) fn merged(mut runs: Vec<Run>) -> Run {
    if runs.len() == 1 {
        return runs.remove(0);
    }
    let series = merged_series(&runs);
    let mut all = Run { drained_ns: NEVER_NS, series, ..Run::default() };
    for run in runs {
        all.gaps.extend(run.gaps);
        all.completed += run.completed;
        all.failed += run.failed;
        all.peak_blocks += run.peak_blocks;
        all.peak_parked += run.peak_parked;
        all.kv_blocks += run.kv_blocks;
        all.drained_ns = all.drained_ns.min(run.drained_ns);
        all.iterations += run.iterations;
        all.decode_tokens += run.decode_tokens;
        all.prefill_tokens += run.prefill_tokens;
        all.prompt_tokens += run.prompt_tokens;
        all.cached_tokens += run.cached_tokens;
        all.restored_tokens += run.restored_tokens;
        all.draft_tokens += run.draft_tokens;
        all.accepted_tokens += run.accepted_tokens;
        all.step_tokens.resize(all.step_tokens.len().max(run.step_tokens.len()), 0);
        add(&mut all.step_tokens, &run.step_tokens);
        for (name, blocks) in run.peak_by_group {
            match all.peak_by_group.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => *sum += blocks,
                None => all.peak_by_group.push((name, blocks)),
            }
        }
        add_stats(&mut all.stats, &run.stats);
    }
    all
}

fn add(sums: &mut [u64], more: &[u64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

fn add_stats(sum: &mut Stats, more: &Stats) {
    sum.iterations += more.iterations;
    sum.admitted += more.admitted;
    sum.finished += more.finished;
    sum.aborted += more.aborted;
    sum.refused += more.refused;
    sum.preemptions += more.preemptions;
    sum.recomputed_tokens += more.recomputed_tokens;
    sum.unknown_ids += more.unknown_ids;
    sum.corrected_plans += more.corrected_plans;
    add(&mut sum.holds, &more.holds);
}

/// What all engines held together, whenever one of them was sampled, thinned to as many samples as one has.
fn merged_series(runs: &[Run]) -> Vec<Sample> {
    let each = runs.iter().enumerate().flat_map(|(at, run)| run.series.iter().map(move |&sample| (sample, at)));
    let mut samples: Vec<(Sample, usize)> = each.collect();
    samples.sort_by_key(|(sample, _)| sample.at_ns);
    let every = samples.len().div_ceil(SAMPLES).max(1);
    let (mut last, mut sum) = (vec![Sample::default(); runs.len()], Sample::default());
    let mut series = Vec::with_capacity(samples.len() / every + 1);
    for (number, (sample, at)) in samples.into_iter().enumerate() {
        let before = std::mem::replace(&mut last[at], sample);
        sum.at_ns = sample.at_ns;
        sum.blocks = sum.blocks + sample.blocks - before.blocks;
        sum.residents = sum.residents + sample.residents - before.residents;
        sum.waiting = sum.waiting + sample.waiting - before.waiting;
        if number % every == every - 1 {
            series.push(sum);
        }
    }
    series
}

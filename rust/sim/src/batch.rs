//! Many runs of one setting, one per seed, each cut at a horizon T: the basis for measurements over [0, T].

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use wait_core::Error;

use crate::dataset::{Dataset, Sampled};
use crate::error::SimError;
use crate::record::Run;
use crate::run::run_until;
use crate::setup::Setup;

/// What to repeat.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Policy, engine and law.
    pub setup: Setup,
    /// Arrivals and lengths.
    pub dataset: Dataset,
    /// Mean requests per second.
    pub request_rate: f64,
    /// T, ns; arrivals continue beyond it.
    pub horizon_ns: u64,
    /// Number of threads; the results do not depend on it.
    pub threads: usize,
}

/// What happened in [0, T].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests that arrived.
    pub arrived: u64,
    /// Requests that completed.
    pub completed: u64,
    /// Output tokens of the completed.
    pub output_tokens: u64,
    /// Mean over the arrived of the time spent in the system up to T, s: latency, cut at T.
    pub latency_s: f64,
    /// The same up to the first token, s.
    pub ttft_s: f64,
    /// Most KV blocks in use.
    pub peak_blocks: u32,
    /// Most requests parked at boundaries.
    pub peak_parked: u32,
    /// Evictions.
    pub preemptions: u64,
    /// Iterations.
    pub iterations: u64,
}

/// Most runs of one batch: 72 MB of outcomes.
const MOST_RUNS: u64 = 1_000_000;
/// Most threads.
pub(crate) const MOST_THREADS: usize = 1024;

/// One outcome a seed. `callback` is called after each run of the first thread, with the number of runs it has done,
/// and may stop the batch: each thread then stops after its current run.
///
/// # Errors
/// [`SimError`] for refused settings, an interruption, or a policy that stalls.
pub fn batch(
    batch: &Batch,
    seeds: Range<u64>,
    callback: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Outcome>, SimError> {
    if !(1..=MOST_THREADS).contains(&batch.threads) {
        return Err(Error::invalid("threads", batch.threads, format!("must be between 1 and {MOST_THREADS}")).into());
    }
    let runs = seeds.end.saturating_sub(seeds.start);
    if runs > MOST_RUNS {
        return Err(Error::invalid("runs", runs, format!("must be at most {MOST_RUNS}")).into());
    }
    if batch.horizon_ns == 0 || !batch.request_rate.is_finite() {
        let given = format!("{} ns at {} requests/s", batch.horizon_ns, batch.request_rate);
        return Err(Error::invalid("horizon", given, "must be above 0, at a finite rate").into());
    }
    let all: Vec<u64> = seeds.collect();
    let one = |seed| Ok(outcome(&run_until(&batch.setup, batch.sampled(seed)?.requests(), batch.horizon_ns)?, batch));
    spread(&all, batch.threads, one, callback)
}

/// One result per seed, in their order, on this many threads. An error or a break of the callback ends all of them,
/// each after its current run.
fn spread<T: Send>(
    seeds: &[u64],
    threads: usize,
    one: impl Fn(u64) -> Result<T, SimError> + Sync,
    mut callback: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<T>, SimError> {
    let stopped = AtomicBool::new(false);
    let stop = || stopped.store(true, Ordering::Relaxed);
    // What was done of a share before it stopped.
    let work = |seeds: &[u64], after: &mut dyn FnMut(usize)| {
        let mut results = Vec::with_capacity(seeds.len());
        for &seed in seeds {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            results.push(one(seed).inspect_err(|_| stop())?);
            after(results.len());
        }
        Ok::<_, SimError>(results)
    };
    let (mut shares, work) = (seeds.chunks(seeds.len().div_ceil(threads).max(1)), &work);
    std::thread::scope(|scope| {
        let first = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|seeds| scope.spawn(move || work(seeds, &mut |_| ()))).collect();
        let mut interrupted = None;
        let mut all = vec![work(first, &mut |done| {
            if callback(done).is_break() {
                interrupted = Some(SimError::Interrupted { completed: done, offered: seeds.len() });
                stop();
            }
        })];
        all.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))),
        );
        let mut results = Vec::with_capacity(seeds.len());
        for share in all {
            results.extend(share?);
        }
        interrupted.map_or(Ok(results), Err)
    })
}

impl Batch {
    /// Requests to beyond the horizon, so that no policy sees the end of them before.
    fn sampled(&self, seed: u64) -> Result<Sampled, Error> {
        let mean = self.request_rate * self.horizon_ns as f64 * 1e-9;
        let mut n = (mean + 6.0 * libm::sqrt(mean)) as usize + 16;
        loop {
            let sampled = self.dataset.sample(n, self.request_rate, seed)?;
            if sampled.arrivals.last().is_some_and(|last| last.at_ns > self.horizon_ns) {
                return Ok(sampled);
            }
            n *= 2;
        }
    }
}

fn outcome(run: &Run, batch: &Batch) -> Outcome {
    let horizon = batch.horizon_ns;
    let arrived = || (0..run.arrival_ns.len()).filter(|&i| run.arrival_ns[i] <= horizon);
    let done = || arrived().filter(|&i| run.finished_ns[i] <= horizon);
    let spent = |until: &[u64]| {
        let each = arrived().map(|i| (until[i].min(horizon) - run.arrival_ns[i]) as f64 * 1e-9);
        each.sum::<f64>() / arrived().count() as f64
    };
    Outcome {
        arrived: arrived().count() as u64,
        completed: done().count() as u64,
        output_tokens: done().map(|i| u64::from(run.output[i])).sum(),
        latency_s: spent(&run.finished_ns),
        ttft_s: spent(&run.first_token_ns),
        peak_blocks: run.peak_blocks,
        peak_parked: run.peak_parked,
        preemptions: run.stats.preemptions,
        iterations: run.iterations,
    }
}

#[cfg(test)]
mod tests {
    use wait_core::Config;
    use wait_core::config::PolicyName;
    use wait_core::model::IterationTime;

    use super::*;
    use crate::dataset::{Component, Lengths, Phase, Process};
    use crate::record::NEVER_NS;

    fn example(threads: usize) -> Batch {
        let lengths = |value| Lengths::Constant { value };
        let component = Component { name: "one".to_owned(), weight: 1.0, prompt: lengths(5), output: lengths(4) };
        let config = Config {
            policy: PolicyName::NestedWait,
            kv_blocks: 200,
            block_size: 1,
            boundaries: Some(vec![2, 4]),
            thresholds: Some(vec![3.0, 2.0]),
            work_conserving: false,
            ..Config::default()
        };
        Batch {
            setup: Setup::new(config, IterationTime::linear(0.01, 1e-5).unwrap()),
            dataset: Dataset {
                arrivals: Process::Poisson,
                phases: vec![Phase { start: 0.0, components: vec![component] }],
                conversations: None,
            },
            request_rate: 50.0,
            horizon_ns: 3_000_000_000,
            threads,
        }
    }

    #[test]
    fn threads_change_nothing_and_the_order_is_that_of_the_seeds() {
        let go = |_| ControlFlow::Continue(());
        let one = batch(&example(1), 10..17, go).unwrap();
        assert_eq!(one.len(), 7);
        assert_eq!(batch(&example(3), 10..17, go).unwrap(), one);
        assert_eq!(batch(&example(20), 10..17, go).unwrap(), one);
        assert_eq!(batch(&example(2), 12..13, go).unwrap(), [one[2]]);
        assert_eq!(batch(&example(2), 5..5, go).unwrap(), []);
    }

    #[test]
    fn an_outcome_is_what_a_whole_run_did_up_to_the_horizon() {
        let example = example(1);
        let arrivals = example.sampled(3).unwrap().arrivals;
        let outcome = batch(&example, 3..4, |_| ControlFlow::Continue(())).unwrap()[0];
        let whole = crate::run(&example.setup, &arrivals, |_| ControlFlow::Continue(())).unwrap();
        let by = |times: &[u64]| times.iter().filter(|&&ns| ns <= example.horizon_ns).count() as u64;
        assert_eq!((outcome.arrived, outcome.completed), (by(&whole.arrival_ns), by(&whole.finished_ns)));
        assert_eq!(outcome.output_tokens, 4 * outcome.completed);
        let waited: u64 = whole
            .arrival_ns
            .iter()
            .zip(&whole.first_token_ns)
            .take(outcome.arrived as usize)
            .map(|(&a, &f)| f.min(example.horizon_ns) - a)
            .sum();
        assert!((outcome.ttft_s - waited as f64 * 1e-9 / outcome.arrived as f64).abs() < 1e-9);
        assert!(outcome.latency_s > outcome.ttft_s && outcome.peak_parked > 0 && outcome.iterations > 20);
        assert!(whole.drained_ns > example.horizon_ns && whole.drained_ns != NEVER_NS);
    }

    #[test]
    fn a_stop_waits_for_no_share() {
        // A seed takes a millisecond; the second of two threads would need half a second.
        let done = std::sync::atomic::AtomicUsize::new(0);
        let one = |seed| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            done.fetch_add(1, Ordering::Relaxed);
            if seed == 501 {
                Err(Error::invalid("seed", seed, "the second of the second thread").into())
            } else {
                Ok(seed)
            }
        };
        let few = |most| assert!(done.swap(0, Ordering::Relaxed) < most, "the others continued");
        let seeds: Vec<u64> = (0..1_000).collect();
        let stopped = spread(&seeds, 2, |seed| one(seed.min(500)), |_| ControlFlow::Break(()));
        assert_eq!(stopped, Err(SimError::Interrupted { completed: 1, offered: 1_000 }));
        few(450);
        let failed = spread(&seeds, 2, one, |_| ControlFlow::Continue(()));
        assert!(failed.unwrap_err().to_string().starts_with("seed = 501"));
        few(450);
        assert_eq!(spread(&seeds[..9], 4, one, |_| ControlFlow::Continue(())), Ok((0..9).collect()));
    }

    #[test]
    fn interruptions_and_bad_values_are_reported() {
        let stopped = batch(&example(1), 0..5, |_| ControlFlow::Break(()));
        assert_eq!(stopped, Err(SimError::Interrupted { completed: 1, offered: 5 }));
        let refused = |change: fn(&mut Batch)| {
            let mut bad = example(1);
            change(&mut bad);
            batch(&bad, 0..1, |_| ControlFlow::Continue(())).unwrap_err().to_string()
        };
        assert!(refused(|batch| batch.threads = 0).starts_with("threads = 0"));
        assert!(refused(|batch| batch.threads = usize::MAX).starts_with("threads = 18446744073709551615"));
        let many = batch(&example(1), 0..u64::from(u32::MAX), |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(many.starts_with("runs = 4294967295: must be at most 1000000"), "{many}");
        assert!(refused(|batch| batch.horizon_ns = 0).starts_with("horizon = 0 ns"));
        assert!(refused(|batch| batch.request_rate = f64::INFINITY).starts_with("horizon = "));
        assert!(refused(|batch| batch.setup.config.kv_blocks = 0).starts_with("kv_blocks = 0"));
    }
}

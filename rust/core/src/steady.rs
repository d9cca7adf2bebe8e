//! What to expect of one GPU under Poisson arrivals: residents, memory, TTFT, TPOT and latency of an engine that admits
//! first come first served, never idles and never evicts.
//!
//! Two time scales. Residents come and go slowly: their number is a birth-and-death process, with the mean iteration time
//! (`mixture.rs`) at each number of decodes as its clock, and as many seats as the memory has room for average requests.
//! Its stationary law does not depend on the output lengths' distribution while there are seats, as in any
//! processor-sharing queue; the queue for a seat does, and is scaled by (1 + cv²)/2. Prompts come and go fast: beside a
//! fixed number of decodes, the tokens that wait for their prefill are a Markov chain (`prefill.rs`), which gives the TTFT,
//! and the surplus of the iterations that follow one's own prefill: long iterations gather more arrivals.
//!
//! What is approximated: the separation of the scales, seats instead of memory, and above all stationarity. Near the
//! saturated rate queues take far longer to settle than any trace lasts, and arrivals in bursts wait longer than these.

use serde::{Deserialize, Serialize};

use crate::fluid::{Binding, Setting, kv};
use crate::mixture::{Mixture, resident_kv};
use crate::planning_error::{PlanningError, invalid};
use crate::threshold::require_arrivals;
use crate::workload::RequestType;

mod prefill;
#[cfg(test)]
mod tests;

use prefill::PrefillQueue;

/// The steady state of a workload on one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SteadyState {
    /// What the engine serves when there is always somebody waiting.
    pub saturated: Saturated,
    /// What requests experience; `None` at or above the saturated rate, where queues grow without end.
    pub expected: Option<Expected>,
}

/// An engine with a line that never ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Saturated {
    /// Requests per second.
    pub requests: f64,
    /// Output tokens per second.
    pub throughput: f64,
    /// Requests that decode in an iteration.
    pub decodes: f64,
    /// Mean seconds of an iteration.
    pub iteration_time: f64,
    /// What keeps it from more.
    pub binding: Binding,
}

/// Means over the requests and over time. Seconds, KV tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Requests that decode.
    pub decodes: f64,
    /// KV tokens in use, in whole blocks.
    pub memory: f64,
    /// Standard deviation of the KV tokens in use over time.
    pub memory_deviation: f64,
    /// Share of the time in which no seat is free.
    pub full: f64,
    /// Wait for a seat, part of the TTFT.
    pub wait: f64,
    /// Arrival to the end of prefill.
    pub ttft: f64,
    /// Between output tokens, averaged over the requests that have several.
    pub tpot: f64,
    /// Arrival to completion.
    pub latency: f64,
}

/// Most numbers of decodes at which the iteration time is computed; in between it is interpolated.
const POINTS: usize = 256;
/// Rounds of the fixed point between residents and the queue before prefill.
const ROUNDS: usize = 4;

impl SteadyState {
    /// The steady state in the given setting. `block_size` is the number of tokens in a KV block (1 for none).
    ///
    /// # Errors
    /// [`PlanningError::InvalidArgument`] if nothing arrives, a limit is out of range, or an average request does not fit
    /// the memory.
    pub fn new(setting: &Setting, block_size: u32) -> Result<Self, PlanningError> {
        let model = Model::new(setting, block_size)?;
        let saturated = model.saturated();
        let expected = (model.rate < saturated.requests * (1.0 - 1e-9)).then(|| model.expected(&saturated));
        Ok(Self { saturated, expected })
    }

    /// Its first part alone, in a fraction of the time.
    ///
    /// # Errors
    /// As [`SteadyState::new`].
    pub fn saturated(setting: &Setting, block_size: u32) -> Result<Saturated, PlanningError> {
        Ok(Model::new(setting, block_size)?.saturated())
    }
}

struct Model<'a> {
    setting: &'a Setting<'a>,
    mixture: Mixture<'a>,
    rate: f64,
    /// Decodes of a request, on average.
    stages: f64,
    /// Requests that may decode at once, and whether memory says so.
    seats: usize,
    by_memory: bool,
    block_size: u32,
}

impl<'a> Model<'a> {
    fn new(setting: &'a Setting, block_size: u32) -> Result<Self, PlanningError> {
        setting.limits.validate()?;
        require_arrivals(setting)?;
        if block_size == 0 {
            return Err(invalid("block_size", &block_size, "at least 1"));
        }
        let rate = setting.workload.rate();
        let by_memory = setting.limits.capacity as f64 / resident_kv(setting, block_size);
        if by_memory < 1.0 {
            return Err(invalid("capacity", &setting.limits.capacity, "enough for one request of average length"));
        }
        let running = setting.limits.max_running.map_or(f64::INFINITY, f64::from);
        Ok(Self {
            setting,
            mixture: Mixture::new(setting),
            rate,
            stages: setting.workload.iteration_rate(setting.convention) / rate - 1.0,
            seats: by_memory.min(running) as usize,
            by_memory: by_memory <= running,
            block_size,
        })
    }

    /// Prompts enter as fast as the token budget lets them until the seats are taken, then as others leave.
    fn saturated(&self) -> Saturated {
        let prompt = self.mixture.prompt();
        // Where the budget binds, D/stages leave and (B − D)/prompt enter per iteration.
        let budget = self.mixture.room(0.0);
        let decodes = budget * self.stages / (prompt + self.stages);
        let seats = self.seats as f64;
        let (decodes, time, entries, binding) = if decodes <= seats {
            let room = self.mixture.room(decodes);
            (decodes, self.mixture.seconds(decodes, room), room / prompt, Binding::TokenBudget)
        } else {
            let entries = seats / self.stages;
            let binding = if self.by_memory { Binding::Memory } else { Binding::MaxRunning };
            (seats, self.mixture.poisson_seconds(seats, entries), entries, binding)
        };
        let requests = entries / time;
        let throughput = requests * self.setting.workload.output_rate() / self.rate;
        Saturated { requests, throughput, decodes, iteration_time: time, binding }
    }

    fn expected(&self, saturated: &Saturated) -> Expected {
        let mut times = self.iteration_times();
        let mut surplus = 0.0;
        let mut residents = Residents::new(self, &times, saturated, surplus);
        let mut prefill = self.prefill(&residents);
        // Both lengthen the stay, which adds residents, which changes both: a few rounds settle it.
        for _ in 0..ROUNDS {
            // Prompts that arrive in a Poisson stream at the mean time miss that long iterations gather more of them.
            let clock = prefill.iteration_time / times[residents.decodes.round().max(1.0) as usize];
            for time in &mut times {
                *time *= clock;
            }
            surplus = self.mean_surplus(&prefill, false);
            residents = Residents::new(self, &times, saturated, surplus);
            prefill = self.prefill(&residents);
        }
        let decoding = residents.decodes / self.rate;
        // Who finds nobody decoding waits for no iteration to end.
        let ttft = residents.wait + prefill.ttft - residents.idle * prefill.residual;
        let clock = if self.stages > 0.0 { (decoding - surplus) / self.stages } else { 0.0 };
        let (tokens, deviation) = self.memory(&residents);
        // Prompts hold KV from their first chunk on.
        let prefilling = self.rate * (prefill.ttft - prefill.residual) * self.mixture.prompt();
        Expected {
            decodes: residents.decodes,
            memory: tokens + prefilling,
            memory_deviation: deviation,
            full: residents.full,
            wait: residents.wait,
            ttft,
            tpot: clock + self.mean_surplus(&prefill, true),
            latency: ttft + decoding,
        }
    }

    fn prefill(&self, residents: &Residents) -> PrefillQueue {
        PrefillQueue::new(&self.mixture, residents.decodes.round().max(1.0), self.rate)
    }

    /// Mean seconds of an iteration with 0, 1, … decodes while prompts arrive at the workload's rate: the least T with
    /// T = mean seconds at rate · T entries.
    fn iteration_times(&self) -> Vec<f64> {
        let stride = self.seats.div_ceil(POINTS);
        let mut known = Vec::with_capacity(POINTS + 2);
        let mut time = 0.0;
        for i in 0..=self.seats.div_ceil(stride) {
            let decodes = ((i * stride).min(self.seats) as f64).max(1.0);
            time = f64::max(time, self.mixture.seconds(decodes, 0.0));
            for _ in 0..60 {
                let next = self.mixture.poisson_seconds(decodes, self.rate * time);
                let settled = (next - time).abs() <= 1e-7 * next;
                time = next;
                if settled {
                    break;
                }
            }
            known.push(time);
        }
        let between = |d: usize| {
            let (i, part) = (d / stride, (d % stride) as f64 / stride as f64);
            if part > 0.0 { known[i] + part * (known[i + 1] - known[i]) } else { known[i] }
        };
        (0..=self.seats).map(between).collect()
    }

    /// Mean surplus of a request's decodes, in seconds; or, by token, per decode of a request that has some.
    fn mean_surplus(&self, prefill: &PrefillQueue, by_token: bool) -> f64 {
        let stages = |output: u32| self.setting.convention.last_stage(output);
        let types = self.setting.workload.types().iter().filter(|t| t.rate > 0.0);
        let counted = types.filter(|t| !by_token || stages(t.output) > 0);
        let (sum, rate) = counted.fold((0.0, 0.0), |(sum, rate), t| {
            let decodes = stages(t.output);
            let share = if by_token { f64::from(decodes) } else { 1.0 };
            (sum + t.rate * prefill.surplus(decodes) / share, rate + t.rate)
        });
        if rate > 0.0 { sum / rate } else { 0.0 }
    }

    /// Mean and standard deviation of the KV tokens in use: a random number of residents, each of random size.
    fn memory(&self, residents: &Residents) -> (f64, f64) {
        let demand = self.setting.workload.demand(self.setting.convention);
        if demand.decodes <= 0.0 {
            return (0.0, 0.0);
        }
        let square = |t: &RequestType| {
            let (l, s) = (f64::from(t.prompt), f64::from(self.setting.convention.last_stage(t.output)));
            t.rate * (s * l * l + l * s * (s + 1.0) + s * (s + 1.0) * (2.0 * s + 1.0) / 6.0)
        };
        let mean = demand.decode_kv / demand.decodes;
        let square = self.setting.workload.types().iter().map(square).sum::<f64>() / demand.decodes;
        let held = mean + (f64::from(self.block_size) - 1.0) / 2.0;
        let variance = residents.variance * held * held + residents.decodes * (square - mean * mean).max(0.0);
        (residents.decodes * held, variance.sqrt().min(self.setting.limits.capacity as f64))
    }
}

/// The stationary number of requests that decode.
struct Residents {
    /// Mean and variance.
    decodes: f64,
    variance: f64,
    /// Share of the time with nobody decoding, and with no seat free.
    idle: f64,
    full: f64,
    /// Seconds of waiting for a seat.
    wait: f64,
}

impl Residents {
    fn new(model: &Model, times: &[f64], saturated: &Saturated, surplus: f64) -> Self {
        // In logarithms: with hundreds of seats the ratios overflow.
        let mut logs = vec![0.0];
        for (d, time) in times.iter().enumerate().skip(1) {
            let ratio = model.rate * (model.stages * time + surplus) / d as f64;
            logs.push(if ratio > 0.0 { logs[d - 1] + libm::log(ratio) } else { f64::NEG_INFINITY });
        }
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
        // Behind the seats the line is geometric.
        let ratio = model.rate / saturated.requests;
        let last = weights[weights.len() - 1];
        let waiting = last * ratio / (1.0 - ratio);
        let total = weights.iter().sum::<f64>() + waiting;
        let seats = (weights.len() - 1) as f64;
        let moment = |of: fn(f64) -> f64| {
            let inside: f64 = weights.iter().enumerate().map(|(d, p)| p * of(d as f64)).sum();
            (inside + waiting * of(seats)) / total
        };
        let mean = moment(|d| d);
        let line = last / total * ratio / ((1.0 - ratio) * (1.0 - ratio));
        Self {
            decodes: mean,
            variance: moment(|d| d * d) - mean * mean,
            idle: weights[0] / total,
            full: (last + waiting) / total,
            wait: line / model.rate * (1.0 + squared_variation(model.setting)) / 2.0,
        }
    }
}

/// cv² of A, the KV tokens · iterations of a request.
fn squared_variation(setting: &Setting) -> f64 {
    let types = setting.workload.types();
    let cost = |t: &RequestType| t.token_iterations(setting.convention);
    let square: f64 = types.iter().map(|t| t.rate * cost(t) * cost(t)).sum();
    let mean = kv(&setting.workload.demand(setting.convention)) / setting.workload.rate();
    square / setting.workload.rate() / (mean * mean) - 1.0
}

//! Synthetic workloads: distributions of lengths and processes of arrivals, sampled deterministically.

use serde::{Deserialize, Serialize};
use wait_core::{Error, Result};

use crate::conversations::Conversations;
use crate::prefixes::Prefixes;
use crate::requests::{Arrival, Follow, Requests};
use crate::rng::Stream;

/// Distribution of a length in tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Lengths {
    /// Always the same.
    Constant {
        /// Tokens.
        value: u32,
    },
    /// exp(N(mu, sigma²)), rounded, clipped to `[low, high]`.
    Lognormal {
        /// Mean of the logarithm.
        mu: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// Least value.
        low: u32,
        /// Greatest value.
        high: u32,
    },
    /// Uniform within `[edges[i], edges[i + 1])`, bin i drawn with `weights[i]`.
    Histogram {
        /// Bin edges, ascending, one more than the weights.
        edges: Vec<u32>,
        /// Weights, not necessarily normalised.
        weights: Vec<f64>,
    },
}

impl Lengths {
    fn validate(&self, name: &str) -> Result<()> {
        let refuse = |value: String, rule: &str| Err(Error::invalid(name, value, rule));
        match self {
            Self::Constant { value: 0 } => refuse("0".into(), "must be at least 1"),
            Self::Constant { .. } => Ok(()),
            Self::Lognormal { mu, sigma, low, high } => {
                if !(mu.is_finite() && sigma.is_finite() && *sigma >= 0.0) {
                    return refuse(format!("lognormal({mu}, {sigma})"), "must be finite, with sigma at least 0");
                }
                if *low == 0 || low > high {
                    return refuse(format!("[{low}, {high}]"), "must hold lengths of at least 1");
                }
                Ok(())
            }
            Self::Histogram { edges, weights } => {
                if edges.len() != weights.len() + 1 || !edges.is_sorted() || edges.first().is_none_or(|&e| e == 0) {
                    return refuse(format!("{edges:?}"), "ascending edges of at least 1, one more than the weights");
                }
                let total: f64 = weights.iter().sum();
                if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || total <= 0.0 {
                    return refuse(format!("{weights:?}"), "weights must be finite, at least 0, and not all 0");
                }
                Ok(())
            }
        }
    }

    fn sample(&self, stream: &mut Stream) -> u32 {
        match self {
            Self::Constant { value } => *value,
            Self::Lognormal { mu, sigma, low, high } => {
                let value = libm::round(libm::exp(mu + sigma * stream.normal()));
                (value.clamp(f64::from(*low), f64::from(*high))) as u32
            }
            Self::Histogram { edges, weights } => {
                let bin = weighted(weights.iter().copied(), stream);
                let width = (edges[bin + 1] - edges[bin]).max(1);
                edges[bin] + stream.index(width as usize) as u32
            }
        }
    }
}

fn weighted(weights: impl Iterator<Item = f64> + Clone, stream: &mut Stream) -> usize {
    let mut left = stream.uniform() * weights.clone().sum::<f64>();
    let mut last = 0;
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = i;
            if left <= weight {
                break;
            }
            left -= weight;
        }
    }
    last
}

/// Most requests of one sample: 2.4 GB of arrivals.
const MOST_REQUESTS: usize = 100_000_000;

/// Most changes of state of a sample's arrival process: three seconds of them.
const MOST_CHANGES: f64 = 1e8;

/// A kind of request in the mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Name.
    pub name: String,
    /// Share of the requests, relative to the other components of the phase.
    pub weight: f64,
    /// Prompt lengths.
    pub prompt: Lengths,
    /// Output lengths.
    pub output: Lengths,
}

/// The mix in force from a fraction of the requests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Fraction of the requests before this phase, in [0, 1).
    pub start: f64,
    /// Kinds of request.
    pub components: Vec<Component>,
}

/// How requests arrive; the mean rate is the run's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Process {
    /// Independent exponential gaps.
    Poisson,
    /// Gamma gaps; the shape is vLLM's `--burstiness` (1 = Poisson, below = burstier).
    Gamma {
        /// Shape of the gamma distribution.
        burstiness: f64,
    },
    /// Two states, each with its rate (times the mean) and exponential sojourns.
    Mmpp {
        /// Rate in each state, in multiples of the mean.
        multipliers: [f64; 2],
        /// Mean sojourn in each state, s.
        sojourn_s: [f64; 2],
    },
}

/// A synthetic workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// How requests arrive, or conversations begin.
    pub arrivals: Process,
    /// Mixes of lengths, in the order of their start.
    pub phases: Vec<Phase>,
    /// Whether they are turns of conversations; absent: each stands alone.
    #[serde(default)]
    pub conversations: Option<Conversations>,
}

/// Requests drawn from a dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The requests; all turns of a conversation are adjacent, at the time at which it begins.
    pub arrivals: Vec<Arrival>,
    /// Which request each follows; empty without conversations.
    pub follows: Vec<Option<Follow>>,
    /// Tokens of the system prompt; none without conversations.
    pub system: Option<u32>,
}

impl Sampled {
    /// What is offered to the engine.
    pub fn requests(&self) -> Requests<'_> {
        let prefixes = self.system.map_or(Prefixes::Distinct, |system| Prefixes::Conversations { system });
        Requests { arrivals: &self.arrivals, follows: &self.follows, prefixes }
    }
}

impl Dataset {
    fn validate(&self) -> Result<()> {
        if self.phases.first().is_none_or(|phase| phase.start != 0.0) || !self.phases.is_sorted_by_key(|p| p.start) {
            return Err(Error::invalid("phases", self.phases.len(), "must start at 0, in ascending order"));
        }
        for (p, phase) in self.phases.iter().enumerate() {
            if !(0.0..1.0).contains(&phase.start) {
                return Err(Error::invalid(
                    format!("phases[{p}].start"),
                    phase.start,
                    "must be at least 0 and below 1",
                ));
            }
            let weights: Vec<f64> = phase.components.iter().map(|c| c.weight).collect();
            if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().sum::<f64>() <= 0.0 {
                let given = format!("{weights:?}");
                return Err(Error::invalid(format!("phases[{p}].weight"), given, "finite, at least 0, not all 0"));
            }
            for component in &phase.components {
                component.prompt.validate(&format!("{}.prompt", component.name))?;
                component.output.validate(&format!("{}.output", component.name))?;
            }
        }
        if let Some(conversations) = &self.conversations {
            conversations.validate()?;
        }
        match &self.arrivals {
            Process::Poisson => Ok(()),
            Process::Gamma { burstiness } => positive("burstiness", *burstiness),
            Process::Mmpp { multipliers, sojourn_s } => {
                multipliers.iter().try_for_each(|&m| positive("multipliers", m))?;
                sojourn_s.iter().try_for_each(|&s| positive("sojourn_s", s))
            }
        }
    }

    /// Checks that the process does not change its state far more often than any request arrives.
    fn changes_are_few(&self, n: usize, rate: f64) -> Result<()> {
        let Process::Mmpp { multipliers, sojourn_s } = self.arrivals else { return Ok(()) };
        let per_cycle = rate * (multipliers[0] * sojourn_s[0] + multipliers[1] * sojourn_s[1]);
        let changes = 2.0 * n as f64 / per_cycle;
        if changes <= MOST_CHANGES {
            return Ok(());
        }
        let rule =
            format!("{n} requests at {rate}/s would see {changes:.1e} changes of state, at most {MOST_CHANGES:.0e}");
        Err(Error::invalid("sojourn_s", format!("{sojourn_s:?}"), rule))
    }

    /// `n` requests arriving at `rate` per second on average. Arrival times and lengths come from separate streams, so
    /// the same seed gives the same lengths at every rate. Conversations begin at the rate at which their mean number of
    /// turns makes `rate`; the last one is cut short at `n`.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the parameter that is out of range.
    pub fn sample(&self, n: usize, rate: f64, seed: u64) -> Result<Sampled> {
        self.validate()?;
        if n > MOST_REQUESTS {
            return Err(Error::invalid("num_requests", n, format!("must be at most {MOST_REQUESTS}")));
        }
        // An infinite rate offers everything at once, as in `vllm bench serve`.
        if rate.is_nan() || rate <= 0.0 {
            return Err(Error::invalid("request_rate", rate, "must be above 0 requests per second (or inf)"));
        }
        self.changes_are_few(n, rate)?;
        let (mut times, mut lengths) = (Stream::new(seed, "arrivals"), Stream::new(seed, "lengths"));
        if let Some(conversations) = &self.conversations {
            return Ok(self.sample_conversations(conversations, n, rate, seed));
        }
        let mut clock = Clock::new(&self.arrivals, rate, &mut times);
        let arrivals = (0..n).map(|i| {
            let (label, component) = self.component(i as f64 / n as f64, &mut lengths);
            let at_ns = clock.next_ns(&mut times);
            let (prompt, output) = (component.prompt.sample(&mut lengths), component.output.sample(&mut lengths));
            Arrival { at_ns, prompt, output, label }
        });
        Ok(Sampled { arrivals: arrivals.collect(), ..Sampled::default() })
    }

    /// Draws the component of a request before which the share `done` of all requests arrived, and its index.
    fn component(&self, done: f64, lengths: &mut Stream) -> (u16, &Component) {
        let phase = self.phases.iter().rev().find(|phase| phase.start <= done).unwrap_or(&self.phases[0]);
        let label = weighted(phase.components.iter().map(|c| c.weight), lengths);
        (label as u16, &phase.components[label])
    }

    fn sample_conversations(&self, shape: &Conversations, n: usize, rate: f64, seed: u64) -> Sampled {
        let (mut times, mut lengths) = (Stream::new(seed, "arrivals"), Stream::new(seed, "lengths"));
        let mut turns = Stream::new(seed, "turns");
        let mut clock = Clock::new(&self.arrivals, rate / shape.turns, &mut times);
        let mut sampled = Sampled { system: Some(shape.system), ..Sampled::default() };
        while sampled.arrivals.len() < n {
            let (label, component) = self.component(sampled.arrivals.len() as f64 / n as f64, &mut lengths);
            let (at_ns, most) = (clock.next_ns(&mut times), shape.turns(&mut turns));
            let (mut held, mut after) = (shape.system, None);
            for _ in 0..most {
                let new = component.prompt.sample(&mut lengths);
                let output = component.output.sample(&mut lengths);
                let prompt = held.saturating_add(new);
                let whole = prompt.saturating_add(output);
                if sampled.arrivals.len() == n || (after.is_some() && whole > shape.max_length) {
                    break;
                }
                let follow = after.map(|after| Follow { after, think_ns: shape.think_ns(&mut turns) });
                after = Some(sampled.arrivals.len() as u32);
                held = whole;
                sampled.arrivals.push(Arrival { at_ns, prompt, output, label });
                sampled.follows.push(follow);
            }
        }
        sampled
    }
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(name, value, "must be finite and above 0"))
}

/// Walks through the arrival process.
struct Clock<'a> {
    process: &'a Process,
    gap_s: f64,
    now_s: f64,
    state: usize,
    switch_s: f64,
}

impl<'a> Clock<'a> {
    fn new(process: &'a Process, rate: f64, times: &mut Stream) -> Self {
        let mut clock = Self { process, gap_s: 1.0 / rate, now_s: 0.0, state: 0, switch_s: f64::INFINITY };
        if let Process::Mmpp { sojourn_s, .. } = process {
            // Start in the stationary distribution of the two states.
            let share = sojourn_s[0] / (sojourn_s[0] + sojourn_s[1]);
            clock.state = usize::from(times.uniform() > share);
            clock.switch_s = sojourn_s[clock.state] * times.exponential();
        }
        clock
    }

    fn next_ns(&mut self, times: &mut Stream) -> u64 {
        match self.process {
            Process::Poisson => self.now_s += self.gap_s * times.exponential(),
            Process::Gamma { burstiness } => self.now_s += self.gap_s * times.gamma(*burstiness),
            Process::Mmpp { multipliers, sojourn_s } => loop {
                let next = self.now_s + self.gap_s / multipliers[self.state] * times.exponential();
                if next <= self.switch_s {
                    self.now_s = next;
                    break;
                }
                // Exponential gaps are memoryless: draw a new one from the switch on.
                self.now_s = self.switch_s;
                self.state = 1 - self.state;
                self.switch_s += sojourn_s[self.state] * times.exponential();
            },
        }
        libm::round(self.now_s * 1e9) as u64
    }
}

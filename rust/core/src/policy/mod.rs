//! Policies: one file each. A policy proposes a plan from the view and never changes anything but its own memory.

mod adaptive;
mod admission;
mod clairvoyant;
mod nested_wait;
mod planned;
mod prefill_first;
mod sarathi;
mod vllm;
mod wait;

use crate::config::{Config, PolicyName};
use crate::error::Result;
use crate::learn::KvForecast;
use crate::model::{BatchShape, IterationTime, Request, Slot};
use crate::plan::Plan;
use crate::state::{Tracked, View};

/// What happened to a request, reported to the policy so that it may learn from it. The view still holds the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It joined the queue.
    Arrived,
    /// It was admitted, or resumed after a preemption.
    Admitted,
    /// It joined a lane: from now on it decodes when the lane runs.
    Joined,
    /// It left the KV cache for the front of the queue.
    Preempted,
    /// The host refused it: it goes back to where it waited, as if it had not been admitted.
    Refused,
    /// Its output ended by itself.
    Finished,
    /// It was aborted.
    Aborted,
}

/// What happened to iterations, reported to the policy so that it may learn how long they take.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// An iteration that computes something was planned.
    Planned {
        /// Number of the plan.
        iteration: u64,
        /// What it computes.
        shape: &'a BatchShape,
    },
    /// The host did something other than the last plan.
    Corrected,
    /// An iteration has ended.
    Took {
        /// Number of its plan; if absent, the oldest that has not ended.
        iteration: Option<u64>,
        /// How long it took, ns.
        ns: u64,
    },
}

/// The learned iteration-time law, and how good it is.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LearnedLaw {
    /// The law; none before the first 64 iterations are learned from.
    pub law: Option<IterationTime>,
    /// Mean relative error of the last 512 iterations, each predicted before it was learned from; none before the first.
    pub error: Option<f64>,
    /// Iterations learned from.
    pub observations: u64,
    /// Whether it is used: its error is known and small, and the host has given no law.
    pub used: bool,
}

/// What a learning policy expects: the figures that a router needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Most KV tokens that the residents will hold, if none is admitted after them.
    pub kv_peak: f64,
    /// Standard deviation of that.
    pub kv_deviation: f64,
    /// Mean output length, tokens.
    pub output: f64,
}

/// The contract of a policy.
pub trait Policy {
    /// Decode lanes it uses.
    fn lanes(&self) -> usize {
        1
    }

    /// Waiting queues it uses: one for each type it distinguishes, or as many as it sorts waiting requests into.
    fn queues(&self) -> usize {
        1
    }

    /// Whether an admission takes the blocks of the whole prompt, not only those of its first chunk.
    fn reserves_prompts(&self) -> bool {
        true
    }

    /// Whether a preempted request resumes by rank, before its equals; otherwise before all others.
    fn resumes_by_rank(&self) -> bool {
        false
    }

    /// Types it distinguishes: `add` refuses a type beyond them. None where a type is only a label.
    fn types(&self) -> Option<usize> {
        (self.queues() > 1).then(|| self.queues())
    }

    /// The type of a new request; below `types()` if there are any.
    fn classify(&self, request: &Request) -> u16 {
        request.type_id.unwrap_or(0)
    }

    /// The place of a new request in its queue: lower goes first, first come first served among equals.
    fn rank(&self, _view: &View, _request: &Request, _max_tokens: u32) -> i64 {
        0
    }

    /// The lane a request decodes in once its prompt is computed and `stage` tokens are emitted.
    fn lane(&self, _request: &Tracked, _stage: u32) -> usize {
        0
    }

    /// The thresholds in force, requests per service: one a type or segment; none where the policy has none.
    fn thresholds(&self) -> Vec<f64> {
        Vec::new()
    }

    /// How long a request that arrives now would wait for its admission, ns, where behind n others it is `behind(n)`.
    fn predicted_wait_ns(&self, view: &View, behind: &dyn Fn(u32) -> u64) -> u64 {
        behind(view.waiting_total())
    }

    /// When a new request with the predicted wait `wait_ns` would have its first token, and its deadline for it, ns
    /// after its arrival, where a policy refuses late requests.
    fn refuses(&self, _request: &Request, _wait_ns: u64) -> Option<(u64, u64)> {
        None
    }

    /// What it has learned from the traffic, to be restored later; none where a policy learns nothing.
    fn learned(&self) -> Option<serde_json::Value> {
        None
    }

    /// Restores what was learned before, while no request is present.
    ///
    /// # Errors
    /// Says why it cannot be used.
    fn restore(&mut self, _view: &View, _state: &serde_json::Value) -> std::result::Result<(), String> {
        Err("this policy learns nothing".to_owned())
    }

    /// The KV tokens that it expects the residents to hold, by horizon; none where a policy forecasts nothing. Does not
    /// affect any decision.
    fn kv_forecast(&mut self, _view: &View) -> Vec<KvForecast> {
        Vec::new()
    }

    /// What it expects of the residents and of their lengths; none where a policy learns nothing. Does not affect any
    /// decision.
    fn expects(&mut self, _view: &View) -> Option<Expected> {
        None
    }

    /// Learns what happened.
    fn observe(&mut self, _view: &View, _slot: Slot, _event: Event) {}

    /// Learns how long iterations take.
    fn step(&mut self, _step: Step) {}

    /// The iteration-time law that it has learned; none where a policy learns none.
    fn learned_law(&self) -> Option<LearnedLaw> {
        None
    }

    /// Proposes the next iteration.
    fn plan(&mut self, view: &View, plan: &mut Plan);
}

/// The policies. A closed set: dispatch is a jump by a tag of its own, and the validator knows each of them.
#[derive(Clone, Debug)]
#[repr(u8)]
pub enum AnyPolicy {
    /// vLLM V1.
    Vllm(vllm::Vllm),
    /// WAIT.
    Wait(wait::Wait),
    /// Nested WAIT.
    NestedWait(nested_wait::NestedWait),
    /// Vidur's vLLM.
    PrefillFirst(prefill_first::PrefillFirst),
    /// Sarathi-Serve.
    Sarathi(sarathi::Sarathi),
    /// Known lengths, no preemptions.
    Clairvoyant(clairvoyant::Clairvoyant),
    /// Lengths learned online, memory forecast.
    Adaptive(Box<adaptive::Adaptive>),
}

macro_rules! delegate {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            AnyPolicy::Vllm($policy) => $call,
            AnyPolicy::Wait($policy) => $call,
            AnyPolicy::NestedWait($policy) => $call,
            AnyPolicy::PrefillFirst($policy) => $call,
            AnyPolicy::Sarathi($policy) => $call,
            AnyPolicy::Clairvoyant($policy) => $call,
            AnyPolicy::Adaptive($policy) => $call,
        }
    };
}

impl AnyPolicy {
    /// The policy that a valid configuration names.
    ///
    /// # Errors
    /// [`crate::Error`] where the settings do not suit the policy.
    pub fn new(config: &Config) -> Result<Self> {
        Ok(match config.policy {
            PolicyName::Vllm => Self::Vllm(vllm::Vllm::default()),
            PolicyName::Wait => Self::Wait(wait::Wait::new(config)?),
            PolicyName::NestedWait => Self::NestedWait(nested_wait::NestedWait::new(config)?),
            PolicyName::PrefillFirst => Self::PrefillFirst(prefill_first::PrefillFirst),
            PolicyName::Sarathi => Self::Sarathi(sarathi::Sarathi),
            PolicyName::Clairvoyant => Self::Clairvoyant(clairvoyant::Clairvoyant::new(config)),
            PolicyName::Adaptive => Self::Adaptive(Box::new(adaptive::Adaptive::new(config))),
        })
    }
}

impl Policy for AnyPolicy {
    fn lanes(&self) -> usize {
        delegate!(self, policy => policy.lanes())
    }

    fn queues(&self) -> usize {
        delegate!(self, policy => policy.queues())
    }

    fn reserves_prompts(&self) -> bool {
        delegate!(self, policy => policy.reserves_prompts())
    }

    fn resumes_by_rank(&self) -> bool {
        delegate!(self, policy => policy.resumes_by_rank())
    }

    fn types(&self) -> Option<usize> {
        delegate!(self, policy => policy.types())
    }

    fn classify(&self, request: &Request) -> u16 {
        delegate!(self, policy => policy.classify(request))
    }

    fn rank(&self, view: &View, request: &Request, max_tokens: u32) -> i64 {
        delegate!(self, policy => policy.rank(view, request, max_tokens))
    }

    fn lane(&self, request: &Tracked, stage: u32) -> usize {
        delegate!(self, policy => policy.lane(request, stage))
    }

    fn thresholds(&self) -> Vec<f64> {
        delegate!(self, policy => policy.thresholds())
    }

    fn predicted_wait_ns(&self, view: &View, behind: &dyn Fn(u32) -> u64) -> u64 {
        delegate!(self, policy => policy.predicted_wait_ns(view, behind))
    }

    fn refuses(&self, request: &Request, wait_ns: u64) -> Option<(u64, u64)> {
        delegate!(self, policy => policy.refuses(request, wait_ns))
    }

    fn learned(&self) -> Option<serde_json::Value> {
        delegate!(self, policy => policy.learned())
    }

    fn restore(&mut self, view: &View, state: &serde_json::Value) -> std::result::Result<(), String> {
        delegate!(self, policy => policy.restore(view, state))
    }

    fn kv_forecast(&mut self, view: &View) -> Vec<KvForecast> {
        delegate!(self, policy => policy.kv_forecast(view))
    }

    fn expects(&mut self, view: &View) -> Option<Expected> {
        delegate!(self, policy => policy.expects(view))
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        delegate!(self, policy => policy.observe(view, slot, event));
    }

    fn step(&mut self, step: Step) {
        delegate!(self, policy => policy.step(step));
    }

    fn learned_law(&self) -> Option<LearnedLaw> {
        delegate!(self, policy => policy.learned_law())
    }

    #[inline(always)]
    fn plan(&mut self, view: &View, plan: &mut Plan) {
        delegate!(self, policy => policy.plan(view, plan));
    }
}

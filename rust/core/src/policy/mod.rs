//! Policies: one file each. A policy proposes a plan from the view and never changes anything but its own memory.

mod adaptive;
mod boundary;
mod clairvoyant;
mod gate;
mod nested_wait;
mod planned;
mod prefill_first;
mod profile;
mod sarathi;
mod vllm;
mod wait;

use crate::config::{Config, PolicyName};
use crate::error::Result;
use crate::plan::Plan;
use crate::request::{Request, Slot, Tracked};
use crate::view::View;

/// What happened to a request, told to the policy that may learn from it. The view still holds the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It joined the waiting line.
    Arrived,
    /// It was admitted, or resumed after a preemption.
    Admitted,
    /// It joined a lane: from now on it decodes when the lane runs.
    Joined,
    /// It left the KV cache for the front of the line.
    Preempted,
    /// Its output ended by itself.
    Finished,
    /// The host took it back.
    Aborted,
}

/// The contract of a policy.
pub trait Policy {
    /// Decode lanes it uses.
    fn lanes(&self) -> usize {
        1
    }

    /// Waiting lines it uses.
    fn queues(&self) -> usize {
        1
    }

    /// Types it distinguishes: `add` refuses a type beyond them. None where a type is a mere label.
    fn types(&self) -> Option<usize> {
        (self.queues() > 1).then(|| self.queues())
    }

    /// The type of a new request; below `types()` if there are any.
    fn classify(&self, request: &Request) -> u16 {
        request.type_id.unwrap_or(0)
    }

    /// The lane a request decodes in once its prompt is computed and `stage` tokens are emitted.
    fn lane(&self, _request: &Tracked, _stage: u32) -> usize {
        0
    }

    /// The thresholds in force, requests per service: one a type or segment; none where the policy has none.
    fn thresholds(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Learns what happened.
    fn observe(&mut self, _view: &View, _slot: Slot, _event: Event) {}

    /// Proposes the next iteration.
    fn plan(&mut self, view: &View, plan: &mut Plan);
}

/// The policies there are. A closed set: dispatch is a jump, and every one of them is known to the validator.
#[derive(Clone, Debug)]
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
    /// Known lengths, no evictions.
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
            PolicyName::Vllm => Self::Vllm(vllm::Vllm),
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

    fn types(&self) -> Option<usize> {
        delegate!(self, policy => policy.types())
    }

    fn classify(&self, request: &Request) -> u16 {
        delegate!(self, policy => policy.classify(request))
    }

    fn lane(&self, request: &Tracked, stage: u32) -> usize {
        delegate!(self, policy => policy.lane(request, stage))
    }

    fn thresholds(&self) -> Vec<f64> {
        delegate!(self, policy => policy.thresholds())
    }

    fn observe(&mut self, view: &View, slot: Slot, event: Event) {
        delegate!(self, policy => policy.observe(view, slot, event));
    }

    fn plan(&mut self, view: &View, plan: &mut Plan) {
        delegate!(self, policy => policy.plan(view, plan));
    }
}

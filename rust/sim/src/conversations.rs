//! How conversations are made of requests: how many turns they have, and how long their users think.

use serde::{Deserialize, Serialize};
use wait_core::{Error, Result};

use crate::rng::Stream;

/// Requests as the turns of conversations: what a component calls the prompt is what the user adds in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversations {
    /// Mean number of turns, geometrically distributed from 1 on.
    pub turns: f64,
    /// Median of the time from the end of an answer to the next turn, s; lognormal.
    pub think_s: f64,
    /// Standard deviation of the logarithm of that time.
    pub think_sigma: f64,
    /// Tokens of a system prompt that begins all conversations.
    pub system: u32,
    /// A conversation ends before a turn of which prompt and answer together would be longer, tokens.
    pub max_length: u32,
}

impl Conversations {
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse =
            |name: &str, value: f64, rule: &str| Err(Error::invalid(format!("conversations.{name}"), value, rule));
        if !(self.turns.is_finite() && self.turns >= 1.0) {
            return refuse("turns", self.turns, "must be finite and at least 1");
        }
        for (name, value) in [("think_s", self.think_s), ("think_sigma", self.think_sigma)] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(name, value, "must be finite and at least 0");
            }
        }
        Ok(())
    }

    /// Draws how many turns a conversation has: k with probability q (1 − q)^(k − 1), where 1 / q is the mean.
    pub(crate) fn turns(&self, stream: &mut Stream) -> u32 {
        let draw = libm::log(stream.uniform());
        1 + (draw / libm::log1p(-1.0 / self.turns)) as u32
    }

    /// Draws a time to think, at most a day.
    pub(crate) fn think_ns(&self, stream: &mut Stream) -> u64 {
        let seconds = self.think_s * libm::exp(self.think_sigma * stream.normal());
        (seconds.min(86_400.0) * 1e9) as u64
    }
}

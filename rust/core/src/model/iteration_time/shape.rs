//! What one iteration computes: the arguments of an iteration-time law.

use serde::{Deserialize, Serialize};

/// What one iteration computes, summed over its requests. All fields count tokens, except `decodes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchShape {
    /// P: prompt tokens computed.
    pub prefill_tokens: u64,
    /// D: requests that decode, one token each.
    pub decodes: u64,
    /// K: KV tokens of the decoding requests, l + s each at stage s.
    pub decode_kv: u64,
    /// KV tokens of the prefilling requests at the end of the iteration: tokens already there plus the chunk.
    pub prefill_kv: u64,
    /// 2Q: twice the prefill attention, Σ chunk · (2 · kv + chunk), kept doubled so that it stays an integer.
    pub prefill_attention: u64,
}

impl BatchShape {
    /// Adds one decode of a request that holds `kv` tokens (prompt and generated, the current one included).
    #[inline]
    pub fn add_decode(&mut self, kv: u64) {
        self.decodes += 1;
        self.decode_kv += kv;
    }

    /// Adds `chunk` prompt tokens of a request whose first `kv` tokens are computed already.
    #[inline]
    pub fn add_prefill(&mut self, chunk: u64, kv: u64) {
        self.prefill_tokens += chunk;
        self.prefill_kv += kv + chunk;
        self.prefill_attention += chunk * (2 * kv + chunk);
    }

    /// n: tokens computed, P + D.
    #[inline]
    pub fn tokens(&self) -> u64 {
        self.prefill_tokens + self.decodes
    }
}

/// A [`BatchShape`] in the fluid model, where counts are averages.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FluidShape {
    /// P, tokens.
    pub prefill_tokens: f64,
    /// D, requests.
    pub decodes: f64,
    /// K, tokens.
    pub decode_kv: f64,
    /// KV tokens of the prefilling requests.
    pub prefill_kv: f64,
    /// 2Q, tokens squared.
    pub prefill_attention: f64,
}

impl FluidShape {
    /// n: tokens computed, P + D.
    pub fn tokens(&self) -> f64 {
        self.prefill_tokens + self.decodes
    }

    /// The shape of `factor` times as many requests.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens * factor,
            decodes: self.decodes * factor,
            decode_kv: self.decode_kv * factor,
            prefill_kv: self.prefill_kv * factor,
            prefill_attention: self.prefill_attention * factor,
        }
    }

    /// The shape of both batches together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens + other.prefill_tokens,
            decodes: self.decodes + other.decodes,
            decode_kv: self.decode_kv + other.decode_kv,
            prefill_kv: self.prefill_kv + other.prefill_kv,
            prefill_attention: self.prefill_attention + other.prefill_attention,
        }
    }
}

impl From<&BatchShape> for FluidShape {
    #[inline]
    fn from(shape: &BatchShape) -> Self {
        Self {
            prefill_tokens: shape.prefill_tokens as f64,
            decodes: shape.decodes as f64,
            decode_kv: shape.decode_kv as f64,
            prefill_kv: shape.prefill_kv as f64,
            prefill_attention: shape.prefill_attention as f64,
        }
    }
}

//! The law beside decodes that do not change: how long an iteration takes with one more prompt, or part of one.

use super::{AttentionCosts, FluidShape, IterationTime};

/// What the law says of some decodes, computed once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BesideDecodes {
    decodes: u64,
    decode_kv: f64,
    /// What they and a prefill cost once per batch, and what the decodes cost each, ns.
    once_ns: f64,
    decode_ns: f64,
}

impl IterationTime {
    /// The law beside so many decodes that read so many KV tokens.
    pub(crate) fn beside(&self, decodes: u64, decode_kv: u64) -> BesideDecodes {
        let attention = self.attention();
        let decoding = FluidShape { decodes: decodes as f64, decode_kv: decode_kv as f64, ..FluidShape::default() };
        BesideDecodes {
            decodes,
            decode_kv: decoding.decode_kv,
            once_ns: attention.base_ns(&FluidShape { prefill_tokens: 1.0, ..decoding }),
            decode_ns: attention.variable_ns(&decoding),
        }
    }

    /// As `seconds` of a batch of these decodes and the first `tokens` of a prompt, at least one; to the last bit.
    #[inline]
    pub(crate) fn seconds_beside(&self, beside: &BesideDecodes, tokens: u64) -> f64 {
        let (base, own) = (self.token_ns(beside.decodes + tokens), tokens as f64);
        // In the order in which the terms of a whole batch are added.
        let with = |attention: &AttentionCosts| {
            let linear = beside.decode_ns + attention.per_prefill_token_ns * own + attention.per_prefill_kv_ns * own;
            base + (beside.once_ns + (linear + attention.per_prefill_attention_ns * 0.5 * (own * own)))
        };
        let ns = match self {
            Self::Linear(law) => base + law.d1 * 1e9 * (beside.decode_kv + own),
            Self::A100 => with(&super::A100_ATTENTION),
            Self::Measured(law) => with(&law.attention),
        };
        ns * 1e-9
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchShape, MeasuredLaw, TokenStep};
    use super::*;

    #[test]
    fn it_is_the_law_to_the_last_bit() {
        let attention = AttentionCosts {
            decode_base_ns: 1_003.3,
            per_decode_ns: 321.7,
            per_decode_kv_ns: 7.13,
            prefill_base_ns: 977.1,
            per_prefill_token_ns: 13.9,
            per_prefill_kv_ns: 0.37,
            per_prefill_attention_ns: 0.0031,
        };
        let step = |up_to, base_ns| TokenStep { up_to, base_ns, per_token_ns: 17.3 };
        let measured = MeasuredLaw::new(8, vec![step(64, 9e6), step(500, 11e6)], attention).unwrap();
        let linear = IterationTime::linear(0.0123, 1.7e-7).unwrap();
        for law in [linear, IterationTime::A100, IterationTime::Measured(measured)] {
            for decodes in [0, 1, 63, 200] {
                for tokens in [1, 7, 64, 513, 2048, 70_000] {
                    let mut shape = BatchShape { decodes, decode_kv: decodes * 719, ..BatchShape::default() };
                    shape.add_prefill(tokens, 0);
                    let found = law.seconds_beside(&law.beside(decodes, decodes * 719), tokens);
                    assert_eq!(found.to_bits(), law.seconds(&shape).to_bits(), "{law:?}: {decodes}, {tokens}");
                }
            }
        }
    }
}

//! The threshold construction of the paper's experiments (arXiv 2504.11320 §6): one number, the cap on requests in
//! service, spread over segments and stages.

use serde::{Deserialize, Serialize};

use super::{NestedThresholds, Segment, Segments};
use crate::error::{Error, invalid};

/// Most stages that caps are listed for: the longest output of any model there is.
const MAX_STAGES: u32 = 1 << 20;

/// Caps per segment and per stage that sum to a total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCaps {
    /// Cap on the requests of each segment: `n_k δ_k` rounded.
    pub per_segment: Vec<u32>,
    /// Cap on the requests at each stage, from stage 0.
    pub per_stage: Vec<u32>,
}

impl StageCaps {
    /// Spreads `total` (the paper's tl): `n_k` = `n_1` Π `q_r` with `q_k` = min(`p_k` + η, 0.99) and Σ `n_k δ_k` = tl; segment caps
    /// `n_k δ_k` rounded so that they sum to tl; each cap spread evenly over its segment's stages. With one segment
    /// this is tl spread over the stages of a single type.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `total` is 0, `margin` (η) is negative or not finite, or the segments have more than 2^20
    /// stages.
    pub fn spread(total: u32, segments: &Segments, margin: f64) -> Result<Self, Error> {
        if total == 0 {
            return Err(invalid("total", &total, "at least 1"));
        }
        let all: u32 = segments.as_slice().iter().map(Segment::width).sum();
        if all > MAX_STAGES {
            return Err(invalid("stages", &all, "at most 2^20"));
        }
        let chain = NestedThresholds::chain(1.0, segments, margin)?;
        let width = |k: usize| segments.as_slice()[k].width();
        let stages: f64 = chain.iter().enumerate().map(|(k, n)| n * f64::from(width(k))).sum();
        // Rounding the running sum keeps every cap within one of its share and the total exact.
        let (mut share, mut given) = (0.0, 0);
        let mut caps = Self { per_segment: Vec::new(), per_stage: Vec::new() };
        for (k, n) in chain.iter().enumerate() {
            share += f64::from(total) * n * f64::from(width(k)) / stages;
            let cap = (share + 0.5).floor() as u32 - given;
            given += cap;
            caps.per_segment.push(cap);
            let upto = |i: u32| u64::from(cap) * u64::from(i) / u64::from(width(k));
            caps.per_stage.extend((0..width(k)).map(|i| (upto(i + 1) - upto(i)) as u32));
        }
        Ok(caps)
    }
}

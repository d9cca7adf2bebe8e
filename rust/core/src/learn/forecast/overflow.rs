//! How likely the residents overflow the cache, from what is expected of them at each horizon.
//!
//! The error of the curves is common to all residents at all horizons: one normal variable. Given it, KV is a sum over
//! requests that end independently: taken as normal, as one and the same within an octave of horizons, and as
//! independent from octave to octave. It is at most what it would be if no request ended.

use super::{MODEL_ERROR, Moments, PART, PARTS, Span};

/// Steps, of an eighth of a deviation, to either side in which the common error is integrated.
const STEPS: i32 = 32;

/// The KV tokens that the residents are expected to hold at a horizon, if no request is admitted after them.
///
/// ```
/// use wait_core::{Config, Request, Scheduler};
///
/// let mut scheduler = Scheduler::new(&Config { kv_blocks: 1000, ..Config::default() })?;
/// scheduler.add(&Request { id: 1, prompt: 100, max_tokens: Some(50), ..Request::default() })?;
/// scheduler.plan(0);
/// // At most 150 tokens in a cache of 16,000, and none beyond the horizon by which the request has ended at the latest.
/// let forecast = scheduler.kv_forecast();
/// assert!(forecast.iter().all(|at| at.mean < 160.0 && at.overflow < 1e-6));
/// assert!(forecast.iter().filter(|at| at.horizon > 64).all(|at| at.mean == 0.0));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvForecast {
    /// Iterations ahead.
    pub horizon: u32,
    /// Mean, half a block for the last of each request included, in tokens of the first KV group.
    pub mean: f64,
    /// Standard deviation, in tokens of the first KV group.
    pub deviation: f64,
    /// The probability that they overflow the cache up to this horizon.
    pub overflow: f64,
}

/// The forecast for a cache of `capacity` tokens, of residents that hold at most `most` tokens now and at most `growth` more
/// with each iteration.
pub(crate) fn forecast(outlook: &[Span<PART>; PARTS], capacity: f64, most: f64, growth: f64) -> Vec<KvForecast> {
    let expected = || outlook.iter().flat_map(Span::moments);
    let given = || outlook.iter().flat_map(|span| span.mean.into_iter().zip(span.variance));
    let blank =
        |held: Moments| KvForecast { horizon: held.horizon, mean: held.mean, deviation: held.deviation, overflow: 0.0 };
    let mut forecast: Vec<KvForecast> = expected().map(blank).collect();
    let mut weights = 0.0;
    for step in -STEPS..=STEPS {
        let error = 0.125 * f64::from(step);
        let weight = libm::exp(-0.5 * error * error);
        weights += weight;
        let (mut octave, mut before, mut here) = (0, 1.0, 0.0_f64);
        for (at, (mean, variance)) in forecast.iter_mut().zip(given()) {
            if at.horizon.ilog2() != octave {
                (octave, before, here) = (at.horizon.ilog2(), before * (1.0 - here), 0.0);
            }
            if most + growth * f64::from(at.horizon) > capacity {
                let mean = at.mean + error * MODEL_ERROR * mean;
                here = here.max(exceeds(capacity, mean, libm::sqrt(variance)));
            }
            at.overflow += weight * (1.0 - before * (1.0 - here));
        }
    }
    for at in &mut forecast {
        at.overflow /= weights;
    }
    forecast
}

/// The probability that a normal variable is above a limit.
fn exceeds(limit: f64, mean: f64, deviation: f64) -> f64 {
    if deviation > 0.0 {
        0.5 * libm::erfc((limit - mean) / (deviation * core::f64::consts::SQRT_2))
    } else {
        f64::from(mean > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Forecast;
    use super::*;
    use crate::memory::Footprint;

    /// Two deviations below the cache at 4, 8 and 16 iterations: three octaves.
    fn outlook(variance: f64, mean: f64) -> [Span<PART>; PARTS] {
        let mut outlook = Forecast::new(Footprint::full(1)).outlook(&[]);
        for j in 0..3 {
            (outlook[0].mean[j], outlook[0].variance[j]) = (mean, variance);
        }
        outlook
    }

    #[test]
    fn what_is_random_is_drawn_anew_in_every_octave() {
        let forecast = forecast(&outlook(100.0, 1e-3), 20.0, 1e3, 1.0);
        let p = 0.022_750_f64;
        for (at, expected) in forecast.iter().zip([p, 1.0 - (1.0 - p) * (1.0 - p), 1.0 - (1.0 - p).powi(3)]) {
            assert!((at.deviation - 10.0).abs() < 1e-3 && (at.overflow - expected).abs() < 1e-4, "{at:?}");
        }
        // 24 lies in the octave of 16 and holds nothing: the probability up to it stays.
        assert!((forecast[3].overflow - forecast[2].overflow).abs() < 1e-12);
        assert!(forecast.windows(2).all(|pair| pair[0].overflow <= pair[1].overflow + 1e-15));
    }

    #[test]
    fn what_the_curves_get_wrong_is_the_same_at_every_horizon() {
        let forecast = forecast(&outlook(0.0, 1e4), 1e4 * (1.0 + 2.062_5 * MODEL_ERROR), 1e5, 1.0);
        for at in &forecast {
            assert!((at.overflow - 0.019_58).abs() < 1e-3, "{at:?}");
        }
    }

    #[test]
    fn no_request_grows_by_more_than_a_token_an_iteration() {
        let forecast = forecast(&outlook(100.0, 100.0), 120.0, 100.0, 2.0);
        assert!(forecast[1].overflow.abs() < 1e-12 && forecast[2].overflow > 0.02, "{forecast:?}");
    }
}

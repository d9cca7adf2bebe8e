//! What was learned of the output lengths that nobody knows in advance, handed to the forecast now and then.

use crate::forecast::{Forecast, POOLED};
use crate::lengths::Survival;

/// Iterations between two updates of the curve.
const REFRESH: i64 = 64;
/// Passages of a row that are remembered.
const MEMORY: f64 = 100.0;

#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    survival: Survival,
    refreshed: Option<i64>,
}

impl Learned {
    /// An output of a class ended with the token after `stage`; lengths known in advance teach nothing.
    pub(super) fn end(&mut self, class: usize, stage: u32) {
        if class == POOLED {
            self.survival.end(stage);
        }
    }

    /// Brings the curve of the forecast up to date, now and then.
    pub(super) fn refresh(&mut self, forecast: &mut Forecast) {
        let tick = forecast.tick();
        if self.refreshed.is_some_and(|at| tick - at < REFRESH) {
            return;
        }
        self.refreshed = Some(tick);
        forecast.drain_exposure(POOLED, &mut self.survival);
        self.survival.fade(MEMORY);
        forecast.set_curve(POOLED, self.survival.curve());
    }
}

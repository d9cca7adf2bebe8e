//! Survival curves by class: one for all, and one for each label or predicted length.

use crate::forecast::{CERTAIN, Forecast, POOLED};
use crate::lengths::Survival;
use crate::request::Tracked;

/// Iterations between two updates of the curves.
const REFRESH: i64 = 64;
/// Passages of a row that are remembered.
const MEMORY: f64 = 100.0;

#[derive(Clone, Debug)]
pub(super) struct Classes {
    survivals: Vec<Survival>,
    refreshed: Option<i64>,
}

impl Classes {
    pub(super) fn new() -> Self {
        Self { survivals: vec![Survival::default(); 2], refreshed: None }
    }

    /// The class of a request.
    pub(super) fn of(request: &Tracked) -> usize {
        if request.output.exact().is_some() { CERTAIN } else { POOLED }
    }

    /// An output of a class ended with the token after `stage`.
    pub(super) fn end(&mut self, class: usize, stage: u32) {
        self.survivals[class].end(stage);
    }

    /// Brings the curves of the forecast up to date, now and then.
    pub(super) fn refresh(&mut self, forecast: &mut Forecast) {
        let tick = forecast.tick();
        if self.refreshed.is_some_and(|at| tick - at < REFRESH) {
            return;
        }
        self.refreshed = Some(tick);
        let survival = &mut self.survivals[POOLED];
        forecast.drain_exposure(POOLED, survival);
        survival.fade(MEMORY);
        forecast.set_curve(POOLED, survival.curve(None));
    }
}

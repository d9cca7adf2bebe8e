//! Speculative decoding: each decode verifies drafts, and yields the accepted ones and one more token.

use wait_core::{Error, Phase, Result, Scheduler};

use crate::rng::Stream;
use crate::setup::Setup;

#[derive(Debug)]
pub(crate) struct Drafts<'a> {
    /// The probability that at least this many drafts, 1 to k, are accepted.
    acceptance: &'a [f64],
    stream: Stream,
    /// KV tokens of the requests of which a draft was accepted.
    progress: Vec<(u64, u32)>,
}

impl<'a> Drafts<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Result<Self> {
        let acceptance = setup.acceptance.as_slice();
        let falls = acceptance.is_sorted_by(|a, b| a >= b);
        if !falls || acceptance.iter().any(|p| !(0.0..=1.0).contains(p)) {
            let rule = "must be probabilities that do not rise: no draft is accepted behind one that is not";
            return Err(Error::invalid("acceptance", format!("{acceptance:?}"), rule));
        }
        let drafts = setup.config.num_speculative_tokens;
        if drafts as usize != acceptance.len() {
            let rule = format!("must be {}, as many as there are acceptance rates", acceptance.len());
            return Err(Error::invalid("num_speculative_tokens", drafts, rule));
        }
        Ok(Self { acceptance, stream: Stream::new(setup.steps.seed, "drafts"), progress: Vec::new() })
    }

    #[inline]
    pub(crate) fn any(&self) -> bool {
        !self.acceptance.is_empty()
    }

    /// Drafts that this many decodes verify.
    pub(crate) fn verified(&self, decodes: u32) -> u64 {
        u64::from(decodes) * self.acceptance.len() as u64
    }

    /// Draws how many drafts of each decode of the last plan are accepted. Those that have reached their end are added to
    /// `finished`; for the others `progress` is how far they are.
    pub(crate) fn verify(
        &mut self,
        scheduler: &Scheduler,
        iterations: impl Fn(u64) -> u32,
        finished: &mut Vec<u64>,
    ) -> u64 {
        let (plan, view) = (scheduler.last_plan(), scheduler.view());
        self.progress.clear();
        let mut all = 0;
        for slot in view.iter_residents() {
            let (request, stage) = (view.request(slot), view.stage(slot));
            // One more output token than at its admission comes from the prefill, which verifies nothing.
            if request.phase != Phase::Decoding || !plan.runs(request.lane.into()) || stage == request.kept + 1 {
                continue;
            }
            let chance = self.stream.uniform();
            let accepted = self.acceptance.iter().take_while(|&&p| chance <= p).count() as u32;
            let left = iterations(request.id) - stage;
            all += u64::from(accepted.min(left));
            if accepted >= left {
                finished.push(request.id);
            } else if accepted > 0 {
                self.progress.push((request.id, view.kv(slot) + accepted));
            }
        }
        all
    }

    /// KV tokens of the requests that went further than the last plan assumed.
    pub(crate) fn progress(&self) -> &[(u64, u32)] {
        &self.progress
    }
}

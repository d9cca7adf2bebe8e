//! Which requests are accepted, and which are refused on arrival.

use super::Scheduler;
use crate::error::{Error, Result};
use crate::lookup::Place;
use crate::model::{LengthHint, Request};
use crate::policy::{Event, Policy};

impl Scheduler {
    /// Puts a request in the queue.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths of zero, [`Error::DuplicateId`], [`Error::TooLarge`] for a request that could not
    /// run even alone, [`Error::QueueFull`] when a bound on the queue is reached, [`Error::DeadlineUnreachable`] when
    /// it would wait longer than it may. Nothing changes then.
    pub fn add(&mut self, request: &Request) -> Result<()> {
        let (place, max_tokens) = self.admissible(request)?;
        let type_id = self.policy.classify(request);
        let types = self.policy.types();
        if let Some(types) = types.filter(|&types| usize::from(type_id) >= types) {
            return Err(Error::invalid("type_id", type_id, format!("must be below {types}, the number of types")));
        }
        let queue = if types.is_some() { type_id } else { self.tenants.map_or(0, |_| request.tenant) };
        let rank = self.policy.rank(&self.view, request, max_tokens);
        let slot = self.view.insert(place, request, max_tokens, type_id, queue, rank);
        self.policy.observe(&self.view, slot, Event::Arrived);
        Ok(())
    }

    /// Checks a request; returns where its id will be found, and its `max_tokens` within the model's limit.
    fn admissible(&self, request: &Request) -> Result<(Place, u32)> {
        let id = request.id;
        if request.prompt == 0 {
            return Err(Error::invalid("prompt_tokens", 0, "must be at least 1"));
        }
        if request.max_tokens == Some(0) {
            return Err(Error::invalid("max_tokens", 0, "must be at least 1 (leave it out for the model's limit)"));
        }
        match request.output {
            LengthHint::Exact(0) => return Err(Error::invalid("output_tokens", 0, "must be at least 1")),
            LengthHint::Predicted { tokens, log_error }
                if tokens == 0 || !(log_error.is_finite() && log_error >= 0.0) =>
            {
                let given = format!("{tokens} tokens, error {log_error}");
                return Err(Error::invalid("predicted_tokens", given, "at least 1, with a finite error of at least 0"));
            }
            _ => {}
        }
        if self.tenants.is_some_and(|tenants| usize::from(request.tenant) >= tenants) {
            let rule = "must be an index of tenant_weights";
            return Err(Error::invalid("tenant", request.tenant, rule));
        }
        let place = self.view.locate(id);
        if place.number.is_some() {
            return Err(Error::DuplicateId { id });
        }
        let length = self.view.max_model_len();
        // The output ends at `max_tokens`, whatever its length would be.
        let output = request.output.exact().unwrap_or(1).min(request.max_tokens.unwrap_or(u32::MAX));
        let needs = u64::from(request.prompt) + u64::from(output);
        let most = u64::from(length);
        let limit = u64::from(self.view.largest_beside(request.encoder_blocks));
        if needs > limit {
            return Err(Error::TooLarge { id, needs, limit, what: "the KV cache holds" });
        }
        if needs > most {
            return Err(Error::TooLarge { id, needs, limit: most, what: "max_model_len allows" });
        }
        // With blocks beside those of its tokens it ends earlier where the cache is what limits it.
        let room = length.min(limit as u32) - request.prompt;
        // The queues are summed up only if there is a bound.
        if let Some(bound) = self.max_queued_requests {
            let queued = self.view.waiting_total();
            if queued >= bound {
                return Err(self.full(u64::from(queued), u64::from(bound), "requests"));
            }
        }
        if let Some(bound) = self.max_queued_tokens {
            let queued = self.view.waiting_tokens();
            if queued + u64::from(request.prompt) > bound {
                return Err(self.full(queued, bound, "tokens"));
            }
        }
        if request.max_wait_ns.is_some() || self.refuses_late {
            self.arrives_in_time(request)?;
        }
        Ok((place, request.max_tokens.unwrap_or(room).min(room)))
    }

    /// Compares the expected wait with the longest one allowed, for admission and for the first token.
    fn arrives_in_time(&self, request: &Request) -> Result<()> {
        let wait_ns = self.predicted_wait_ns();
        let admission = request.max_wait_ns.map(|max_wait_ns| (wait_ns, max_wait_ns));
        for (predicted_wait_ns, max_wait_ns) in [admission, self.policy.refuses(request, wait_ns)].into_iter().flatten()
        {
            if predicted_wait_ns > max_wait_ns {
                return Err(Error::DeadlineUnreachable { id: request.id, predicted_wait_ns, max_wait_ns });
            }
        }
        Ok(())
    }

    fn full(&self, queued: u64, bound: u64, unit: &'static str) -> Error {
        Error::QueueFull { queued, bound, unit, predicted_wait_ns: self.predicted_wait_ns() }
    }
}

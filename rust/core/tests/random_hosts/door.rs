//! What `add` must accept, and the reasons for which it may refuse.

use wait_core::config::Late;
use wait_core::{Error, LengthHint, Request};

use crate::host::Host;

/// Tokens that a request has at least in the end.
fn needs(request: &Request) -> u64 {
    let output = request.output.exact().unwrap_or(1).min(request.max_tokens.unwrap_or(u32::MAX));
    u64::from(request.prompt) + u64::from(output)
}

impl Host {
    pub(crate) fn must_accept(&self, request: &Request, predicted_ns: u64) {
        let ledger = &self.ledger;
        assert!(!ledger.entries.contains_key(&request.id), "request {} twice", request.id);
        let needs = needs(request);
        let most = self.config.max_model_len.map_or(u64::MAX, u64::from);
        assert!(needs <= most && self.fits(needs, request.encoder_blocks), "accepted though it fits no empty engine");
        let (queued, tokens) = self.queued();
        assert!(self.config.max_queued_requests.is_none_or(|most| queued < most.into()));
        assert!(self.config.max_queued_tokens.is_none_or(|most| tokens + u64::from(request.prompt) <= most));
        if self.config.late == Late::Park && self.config.ttft_target.is_none() {
            // Another one waits by now: the prediction cannot have been longer.
            assert!(request.max_wait_ns.is_none_or(|most| queued == 0 || predicted_ns / 2 <= most));
        }
    }

    /// Most output tokens that an accepted request may have.
    pub(crate) fn room(&self, request: &Request) -> u32 {
        let length = self.core.view().max_model_len();
        let beside = request.encoder_blocks;
        let fits = |length: &u32| beside == 0 || self.fits(u64::from(*length), beside);
        (0..=length).rev().find(fits).unwrap_or(0) - request.prompt
    }

    /// Whether this many tokens fit, computed one by one, beside so many blocks.
    fn fits(&self, tokens: u64, beside: u32) -> bool {
        (0..tokens.min(256) as u32).all(|kv| self.ledger.kv.after(kv, kv + 1) + beside <= self.ledger.pool.capacity)
    }

    /// What waits: requests, tokens.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let waiting = self.ledger.queue.iter().chain(&self.ledger.resuming);
        let tokens = waiting.map(|id| u64::from(self.ledger.entries[id].target()));
        tokens.fold((0, 0), |(count, sum), tokens| (count + 1, sum + tokens))
    }

    pub(crate) fn may_refuse(&self, request: &Request, error: &Error) {
        let (queued, tokens) = self.queued();
        match error {
            Error::DuplicateId { id } => assert!(*id == request.id && self.ledger.entries.contains_key(id)),
            Error::TooLarge { id, needs, limit, .. } => {
                assert!((*id, *needs) == (request.id, self::needs(request)) && needs > limit, "refused without need");
                let fits = || self.fits(*limit, request.encoder_blocks);
                assert!(self.config.max_model_len.map(u64::from) == Some(*limit) || fits(), "limit {limit}");
            }
            Error::QueueFull { queued: counted, bound, unit, .. } => {
                let ours = if *unit == "requests" { queued } else { tokens };
                assert_eq!(*counted, ours, "{unit} in the queue");
                let more = if *unit == "requests" { 1 } else { u64::from(request.prompt) };
                assert!(ours + more > *bound, "refused with {ours} {unit} of {bound}");
            }
            Error::DeadlineUnreachable { id, predicted_wait_ns, max_wait_ns } => {
                assert!(*id == request.id && predicted_wait_ns > max_wait_ns);
                assert!(request.max_wait_ns.is_some() || self.config.late == Late::Refuse);
            }
            Error::Invalid { name, .. } => {
                let given = match name.as_str() {
                    "prompt_tokens" => request.prompt == 0,
                    "max_tokens" => request.max_tokens == Some(0),
                    "output_tokens" => request.output == LengthHint::Exact(0),
                    "predicted_tokens" => {
                        matches!(request.output, LengthHint::Predicted { log_error, .. } if log_error.is_nan())
                    }
                    "tenant" => usize::from(request.tenant) >= self.config.tenant_weights.len(),
                    "type_id" => request.type_id.is_some_and(|id| usize::from(id) >= self.config.types.len()),
                    _ => false,
                };
                assert!(given, "{error}");
            }
            _ => panic!("{error}"),
        }
    }
}

//! What happens to requests, and what is learned from it.

use super::{Adaptive, label};
use crate::learn::Candidate;
use crate::model::Slot;
use crate::policy::Event;
use crate::state::{Phase, View};

impl Adaptive {
    /// Learns what happened to a request.
    pub(super) fn follow(&mut self, view: &View, slot: Slot, event: Event) {
        let request = view.request(slot);
        let shared = u64::from(request.hit.shared);
        if !matches!(event, Event::Arrived | Event::Admitted | Event::Joined) && request.phase != Phase::Waiting {
            self.shared -= shared;
        }
        if let Some(tenants) = &mut self.tenants {
            tenants.observe(view, slot, event);
        }
        if self.deadline.is_some() {
            self.observe_deadline(view, slot, event);
        }
        match event {
            Event::Arrived => {
                self.traffic.arrive(request.arrival_ns, f64::from(request.prompt.saturating_sub(request.hit.shared)));
                self.learned.arrived(label(request.type_id), request.output, &mut self.forecast);
            }
            Event::Admitted => {
                // What a preempted request took is enough for the rest of its stay.
                if request.kept == 0 {
                    self.pace.take(&self.traffic);
                }
                self.shared += shared;
                let computed = request.prefill_target() - request.hit.computed;
                self.traffic.admit(f64::from(computed), f64::from(request.hit.evicted.min(computed)));
            }
            Event::Joined => {
                self.advance(view);
                let kv = view.kv(slot).saturating_sub(request.hit.shared).saturating_add(self.encoder_kv(view, slot));
                let candidate = Candidate { kv, stage: view.stage(slot), ..self.candidate(view, slot) };
                self.forecast.join(slot, &candidate);
            }
            // A client that leaves frees memory as the end of an output does: both end a stay. If such an end taught
            // nothing, the requests that stay would be expected to stay forever.
            Event::Finished | Event::Aborted => {
                self.advance(view);
                // A host that reports the end late has had iterations planned that computed nothing.
                if let Some((class, stage)) =
                    self.forecast.leave(slot).map(|(class, stage)| (class, stage.min(request.max_tokens)))
                    && let Some(last) = stage.checked_sub(1)
                {
                    self.learned.left(request.output, event == Event::Aborted);
                    self.learned.end(class, last);
                    let kv = f64::from(request.prompt.saturating_sub(request.hit.shared)) + 0.5 * f64::from(stage);
                    self.traffic.end(f64::from(stage), self.forecast.footprint().tokens(kv));
                }
            }
            Event::Preempted | Event::Refused => {
                if matches!(event, Event::Refused) && request.kept == 0 {
                    self.pace.give_back(&self.traffic);
                }
                self.advance(view);
                self.forecast.leave(slot);
            }
        }
    }
}

//! Who may enter: the checks that a request passes one after the other, and what has passed them so far.

use super::Adaptive;
use crate::config::Part;
use crate::cost::BatchShape;
use crate::forecast::{Candidate, Outlook};
use crate::plan::{Hold, HoldReason, Plan};
use crate::policy::Risk;
use crate::request::Slot;
use crate::view::View;

/// Standard error of the forecast's mean, relative: what the curves get wrong for all residents alike.
const MODEL_ERROR: f32 = 0.015;

/// The residents, and those who enter.
pub(super) struct Entry {
    outlook: Outlook,
    capacity: f64,
    overhead: f32,
    free: i64,
    pub(super) seats: u32,
    /// Prefill tokens of the residents and of those who enter.
    pub(super) backlog: u32,
    /// What decodes once all prompts are computed.
    decodes: u32,
    kv: u64,
}

impl Adaptive {
    /// What is known before anybody enters.
    pub(super) fn entry(&mut self, view: &View, plan: &Plan) -> Entry {
        let pool = view.pool();
        let overhead = overhead(view);
        self.learned.refresh(&mut self.forecast);
        let mut entry = Entry {
            outlook: self.forecast.outlook(overhead),
            capacity: capacity(view),
            overhead,
            free: plan.free(),
            seats: view.limits().max_num_seqs.saturating_sub(plan.residents()),
            backlog: 0,
            decodes: plan.decodes(),
            kv: view.lanes()[0].kv(),
        };
        for &slot in view.prefilling() {
            // A host may have taken it back from decoding.
            self.forecast.leave(slot);
            let candidate = self.candidate(view, slot);
            self.forecast.add(&mut entry.outlook, &candidate, overhead);
            entry.backlog += candidate.kv - view.kv(slot);
            entry.free -= i64::from(pool.blocks_for(candidate.kv)) - i64::from(view.blocks(slot));
            entry.join(&candidate);
        }
        entry
    }

    /// Whether a request may enter beside all that `entry` holds; it then holds this one too.
    pub(super) fn check(
        &mut self,
        view: &View,
        plan: &Plan,
        entry: &mut Entry,
        slot: Slot,
        idle: bool,
    ) -> Result<(), Hold> {
        let seats = view.limits().max_num_seqs;
        if entry.seats == 0 {
            return Err(Hold::new(HoldReason::BatchCap, seats + 1, seats));
        }
        let tokens = plan.decodes() + entry.backlog;
        if tokens >= view.limits().token_budget {
            return Err(Hold::new(HoldReason::BatchCap, tokens + 1, view.limits().token_budget));
        }
        let blocks = view.pool().blocks_for(view.request(slot).prefill_target());
        if i64::from(blocks) > entry.free {
            return Err(Hold::new(HoldReason::NoBlocks, blocks, entry.free as f64));
        }
        let mut candidate = self.candidate(view, slot);
        let prompt = candidate.kv;
        candidate.kv -= view.request(slot).shared_prefix;
        let mut outlook = entry.outlook;
        self.forecast.add(&mut outlook, &candidate, entry.overhead);
        if !idle {
            self.fits(&outlook, entry.capacity)?;
            self.keeps_pace(view, entry, prompt)?;
        }
        entry.outlook = outlook;
        entry.backlog += prompt;
        entry.free -= i64::from(blocks);
        entry.seats -= 1;
        entry.join(&Candidate { kv: prompt, ..candidate });
        Ok(())
    }

    /// Memory: everybody up to `max_tokens`, or the forecast and its buffer at every horizon, admissions paced.
    fn fits(&self, outlook: &Outlook, capacity: f64) -> Result<(), Hold> {
        if outlook.reserved <= capacity {
            return Ok(());
        }
        let needs = self.worst(outlook);
        if needs > capacity {
            return Err(Hold::new(HoldReason::ForecastOverflow, needs, capacity));
        }
        if self.has(Part::Pacing) && !self.pace.admits(self.entering.len()) {
            let enter = self.entering.len() as f64;
            return Err(Hold::new(HoldReason::BelowThreshold, enter + 1.0, self.pace.admissions()));
        }
        Ok(())
    }

    /// Speed: the iteration in which all decode takes no longer than the target.
    fn keeps_pace(&self, view: &View, entry: &Entry, prompt: u32) -> Result<(), Hold> {
        let Some((budget, target)) = self.budget.as_ref().zip(self.tpot_target) else { return Ok(()) };
        let decodes = u64::from(entry.decodes + 1).min(u64::from(view.limits().max_num_seqs));
        let decode_kv = entry.kv + u64::from(prompt);
        let seconds = budget.seconds(&BatchShape { decodes, decode_kv, ..BatchShape::default() });
        if seconds > target { Err(Hold::new(HoldReason::TpotTarget, seconds, target)) } else { Ok(()) }
    }

    /// The largest of mean + buffer over the horizons, KV tokens.
    fn worst(&self, outlook: &Outlook) -> f64 {
        let deviations = if self.has(Part::Buffer) { self.deviations } else { 0.0 };
        f64::from(expected(outlook).fold(0.0_f32, |worst, (kv, deviation)| worst.max(kv + deviations * deviation)))
    }

    /// The residents as the last plan saw them, by the curves it used.
    pub(super) fn expect(&mut self, view: &View) -> Risk {
        let (overhead, capacity) = (overhead(view), capacity(view));
        let mut outlook = self.forecast.outlook(overhead);
        for &slot in view.prefilling() {
            // One that the host took back from decoding is still counted among those.
            if !self.forecast.holds(slot) {
                let candidate = self.candidate(view, slot);
                self.forecast.add(&mut outlook, &candidate, overhead);
            }
        }
        let certain = outlook.reserved <= capacity;
        let mut risk = Risk { peak: 0.0, overflow: 0.0 };
        for (kv, deviation) in expected(&outlook) {
            let (kv, deviation) = (f64::from(kv), f64::from(deviation));
            risk.peak = risk.peak.max(kv / capacity);
            if !certain {
                let beyond =
                    if deviation > 0.0 { (capacity - kv) / deviation } else { (capacity - kv) * f64::INFINITY };
                risk.overflow = risk.overflow.max(0.5 * libm::erfc(beyond / core::f64::consts::SQRT_2));
            }
        }
        risk
    }
}

/// Charged to each request beside its KV: its last block is half empty.
fn overhead(view: &View) -> f32 {
    0.5 * (view.pool().block_size() - 1) as f32
}

/// KV tokens the cache holds, less what other requests' shared prefixes save.
fn capacity(view: &View) -> f64 {
    let pool = view.pool();
    let shared = (pool.counted() - pool.used()).max(0) as f64 * f64::from(pool.block_size());
    pool.tokens() as f64 + shared
}

/// The KV expected at each horizon, and how far it may be off: one standard deviation.
fn expected(outlook: &Outlook) -> impl Iterator<Item = (f32, f32)> {
    outlook.certain.iter().zip(&outlook.mean).zip(&outlook.variance).map(|((certain, mean), variance)| {
        let error = MODEL_ERROR * mean;
        (certain + mean, libm::sqrtf(variance + error * error))
    })
}

impl Entry {
    fn join(&mut self, candidate: &Candidate) {
        self.decodes += 1;
        self.kv += u64::from(candidate.kv);
    }
}

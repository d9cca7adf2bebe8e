//! What a run leaves behind. The recorder only writes down; everything else is derived in `report`.

use serde::{Deserialize, Serialize};
use wait_core::policy::LearnedLaw;
use wait_core::{HoldReason, Origin, Scheduler, Stats, View};

use crate::requests::Arrival;

/// Time of an event that has not happened.
pub const NEVER_NS: u64 = u64::MAX;

/// Everything recorded of one run; one entry a request in the columns, in the order in which they were offered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// When the client sent each request, ns; `NEVER_NS` where it followed one that was refused, or a run ended before.
    pub arrival_ns: Vec<u64>,
    /// How long the core expected each to wait for its admission, ns.
    pub predicted_wait_ns: Vec<u64>,
    /// Prompt lengths, tokens; shorter than offered where they hold outputs that `max_tokens` has cut.
    pub prompt: Vec<u32>,
    /// Output lengths, tokens; at most `max_tokens`.
    pub output: Vec<u32>,
    /// Start of the iteration that admitted it first, ns; `NEVER_NS` where the request was refused.
    pub admitted_ns: Vec<u64>,
    /// End of the prefill that gave the first token, ns.
    pub first_token_ns: Vec<u64>,
    /// End of the last iteration of the request, ns.
    pub finished_ns: Vec<u64>,
    /// Times it was preempted.
    pub preemptions: Vec<u32>,
    /// Gaps between the tokens of a request: (ns, how many requests had it).
    pub gaps: Vec<(u64, u32)>,
    /// The state after some of the iterations, evenly spread.
    pub series: Vec<Sample>,
    /// Requests completed.
    pub completed: usize,
    /// Those of them whose output `max_tokens` has cut: they finished by length.
    pub finished_by_length: usize,
    /// Requests refused, since they could never fit, or not in time; and those that were to follow them.
    pub failed: usize,
    /// Most KV blocks in use after an iteration.
    pub peak_blocks: u32,
    /// Which groups of the KV cache held them, by kind as settings name it; empty with one group of full attention.
    pub peak_by_group: Vec<(String, u64)>,
    /// Most requests parked between two segments after an iteration.
    pub peak_parked: u32,
    /// Usable KV blocks.
    pub kv_blocks: u32,
    /// When the gates opened because no more arrivals came; `NEVER_NS` if it was not needed.
    pub drained_ns: u64,
    /// Iterations that computed something.
    pub iterations: u64,
    /// Tokens that decodes yielded: one for each running request and iteration, and the accepted drafts.
    pub decode_tokens: u64,
    /// Tokens computed by prefills, recomputation included.
    pub prefill_tokens: u64,
    /// Prompt tokens of the admitted, each counted at its first admission.
    pub prompt_tokens: u64,
    /// Those of them that were not computed, since the cache held them or they came from elsewhere.
    pub cached_tokens: u64,
    /// KV tokens lost to preemptions that the cache still held when the request was admitted again.
    pub restored_tokens: u64,
    /// Drafts verified.
    pub draft_tokens: u64,
    /// Drafts accepted.
    pub accepted_tokens: u64,
    /// Iterations that computed so many tokens, drafts among them; by the number of tokens, 0 to the most.
    pub step_tokens: Vec<u64>,
    /// The core's counters.
    pub stats: Stats,
    /// What the policy has learned of the traffic and the GPU.
    pub learned: Option<serde_json::Value>,
    /// The iteration-time law that the policy has learned.
    pub learned_law: Option<LearnedLaw>,
}

/// The state after an iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the iteration, ns.
    pub at_ns: u64,
    /// KV blocks in use.
    pub blocks: u32,
    /// Resident requests.
    pub residents: u32,
    /// Waiting requests.
    pub waiting: u32,
}

impl Run {
    /// Plans that held a queue, by reason.
    pub fn holds(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        HoldReason::ALL.iter().map(|reason| (reason.name(), self.stats.holds[*reason as usize]))
    }

    /// KV tokens that were lost to preemptions, except for those that the cache still held.
    pub fn recomputed_tokens(&self) -> u64 {
        self.stats.recomputed_tokens.saturating_sub(self.restored_tokens)
    }

    /// Tokens that an iteration computed: mean, median and 99th percentile, the latter the least that the share does not
    /// exceed; NaN without iterations.
    pub fn tokens_per_step(&self) -> [f64; 3] {
        let counted = || self.step_tokens.iter().enumerate().map(|(tokens, &steps)| (tokens as f64, steps as f64));
        let steps: f64 = counted().map(|(_, steps)| steps).sum();
        let mean = counted().map(|(tokens, steps)| tokens * steps).sum::<f64>() / steps;
        let percentile = |share: f64| {
            let mut below = 0.0;
            let found = counted().find(|&(_, steps_here)| {
                below += steps_here;
                below > 0.0 && below >= share * steps
            });
            found.map_or(f64::NAN, |(tokens, _)| tokens)
        };
        [mean, percentile(0.5), percentile(0.99)]
    }
}

/// Most samples kept of the series.
const SAMPLES: usize = 4096;

const NO_LANE: u16 = u16::MAX;

/// Token times of a lane's members: all had their last token at `stepped_ns`, but for the newcomers.
#[derive(Clone, Debug, Default)]
struct LaneTimes {
    stepped_ns: u64,
    /// Members whose last token is not from the lane's last step: (time of it, request).
    newcomers: Vec<(u64, u32)>,
    /// Members that joined in the current iteration.
    joined: u32,
}

#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    arrivals: &'a [Arrival],
    run: Run,
    lanes: Vec<LaneTimes>,
    /// Lane of each request, and time of its last token; the time is valid while it is in none.
    lane_of: Vec<u16>,
    last_token_ns: Vec<u64>,
    /// Tokens before the last chunk of each request, by which its blocks divide; empty with one group of full attention.
    chunk_start: Vec<u32>,
    stride: u64,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(arrivals: &'a [Arrival], scheduler: &Scheduler, kv_blocks: u32) -> Self {
        let n = arrivals.len();
        let (lanes, groups) = (scheduler.view().lanes().len(), scheduler.view().layout().groups());
        let run = Run {
            arrival_ns: vec![NEVER_NS; n],
            predicted_wait_ns: vec![0; n],
            admitted_ns: vec![NEVER_NS; n],
            first_token_ns: vec![NEVER_NS; n],
            finished_ns: vec![NEVER_NS; n],
            preemptions: vec![0; n],
            peak_by_group: groups.iter().map(|group| (group.kind.name().to_owned(), 0)).collect(),
            kv_blocks,
            drained_ns: NEVER_NS,
            ..Run::default()
        };
        let (lane_of, last_token_ns) = (vec![NO_LANE; n], vec![NEVER_NS; n]);
        let lanes = vec![LaneTimes::default(); lanes];
        let chunk_start = if groups.is_empty() { Vec::new() } else { vec![0; n] };
        Self { arrivals, run, lanes, lane_of, last_token_ns, chunk_start, stride: 1 }
    }

    pub(crate) fn completed(&self) -> usize {
        self.run.completed
    }

    pub(crate) fn send(&mut self, id: u64, at_ns: u64, predicted_wait_ns: u64) {
        self.run.arrival_ns[id as usize] = at_ns;
        self.run.predicted_wait_ns[id as usize] = predicted_wait_ns;
    }

    pub(crate) fn reject(&mut self, requests: usize) {
        self.run.failed += requests;
    }

    pub(crate) fn drain(&mut self, now_ns: u64) {
        self.run.drained_ns = now_ns;
    }

    /// The request leaves its lane, if it is in one: when was its last token?
    fn out_of_lane(&mut self, id: u32) {
        let Some(lane) = self.lanes.get_mut(usize::from(self.lane_of[id as usize])) else { return };
        self.lane_of[id as usize] = NO_LANE;
        let at = lane.newcomers.iter().position(|&(_, other)| other == id);
        self.last_token_ns[id as usize] = at.map_or(lane.stepped_ns, |at| lane.newcomers.swap_remove(at).0);
    }

    /// Writes down which requests were taken out of a lane by the last plan.
    pub(crate) fn parked(&mut self, scheduler: &Scheduler) {
        for &slot in scheduler.last_plan().parked() {
            self.out_of_lane(scheduler.view().request(slot).id as u32);
        }
    }

    /// Writes down an iteration from `start_ns` to `end_ns`, as the scheduler has applied it.
    pub(crate) fn iteration(&mut self, scheduler: &Scheduler, start_ns: u64, end_ns: u64) {
        let (plan, view) = (scheduler.last_plan(), scheduler.view());
        for &(_, id) in plan.preempted() {
            self.run.preemptions[id as usize] += 1;
            self.out_of_lane(id as u32);
        }
        for &(slot, lane) in plan.unparked() {
            let id = view.request(slot).id as u32;
            self.lane_of[id as usize] = lane;
            self.lanes[usize::from(lane)].newcomers.push((self.last_token_ns[id as usize], id));
        }
        for chunk in plan.chunks() {
            let id = chunk.id as usize;
            self.run.prefill_tokens += u64::from(chunk.tokens);
            if let Some(start) = self.chunk_start.get_mut(id) {
                *start = chunk.start;
            }
            match chunk.origin {
                Origin::Resident => {}
                Origin::Admitted => {
                    self.run.admitted_ns[id] = start_ns;
                    self.run.prompt_tokens += u64::from(self.arrivals[id].prompt);
                    self.run.cached_tokens += u64::from(chunk.start);
                }
                Origin::Resumed => self.run.restored_tokens += u64::from(chunk.start),
            }
            if chunk.last {
                let request = view.request(chunk.slot);
                self.lane_of[id] = request.lane;
                self.lanes[usize::from(request.lane)].joined += 1;
                if self.run.first_token_ns[id] == NEVER_NS {
                    self.run.first_token_ns[id] = end_ns;
                } else {
                    self.run.gaps.push((end_ns - self.last_token_ns[id], 1));
                }
            }
        }
        for (lane, times) in self.lanes.iter_mut().enumerate() {
            let members = view.lanes()[lane].len() - std::mem::take(&mut times.joined);
            if plan.runs(lane) {
                let together = members - times.newcomers.len() as u32;
                if together > 0 {
                    self.run.gaps.push((end_ns - times.stepped_ns, together));
                }
                self.run.gaps.extend(times.newcomers.drain(..).map(|(at_ns, _)| (end_ns - at_ns, 1)));
                times.stepped_ns = end_ns;
            }
        }
        for chunk in plan.chunks().iter().filter(|chunk| chunk.last) {
            let times = &mut self.lanes[usize::from(self.lane_of[chunk.id as usize])];
            if times.stepped_ns != end_ns {
                times.newcomers.push((end_ns, chunk.id as u32));
            }
        }
        self.run.decode_tokens += u64::from(plan.decodes());
        self.run.iterations += u64::from(!plan.is_empty());
        self.count_tokens(plan.tokens() as usize);
        self.sample(scheduler, end_ns);
    }

    #[inline]
    fn count_tokens(&mut self, tokens: usize) {
        if tokens >= self.run.step_tokens.len() {
            self.run.step_tokens.resize(tokens + 1, 0);
        }
        self.run.step_tokens[tokens] += u64::from(tokens > 0);
    }

    /// Writes down how many drafts the decodes of an iteration verified, and how many were accepted.
    pub(crate) fn drafts(&mut self, verified: u64, accepted: u64) {
        self.run.draft_tokens += verified;
        self.run.accepted_tokens += accepted;
        self.run.decode_tokens += accepted;
    }

    /// Requests whose progress was corrected may be in another lane now.
    #[inline]
    pub(crate) fn moved(&mut self, scheduler: &Scheduler, progress: &[(u64, u32)]) {
        for &(id, _) in progress {
            let Some(slot) = scheduler.view().slot(id) else { continue };
            let (id, lane) = (id as u32, scheduler.view().request(slot).lane);
            if self.lane_of[id as usize] != lane {
                self.out_of_lane(id);
                self.lane_of[id as usize] = lane;
                self.lanes[usize::from(lane)].newcomers.push((self.last_token_ns[id as usize], id));
            }
        }
    }

    fn sample(&mut self, scheduler: &Scheduler, at_ns: u64) {
        let view = scheduler.view();
        let blocks = view.pool().used().max(0) as u32;
        if blocks > self.run.peak_blocks {
            self.run.peak_blocks = blocks;
            if !self.run.peak_by_group.is_empty() {
                self.divide(view);
            }
        }
        self.run.peak_parked = self.run.peak_parked.max(view.parked().len() as u32);
        // The stride is a power of two.
        if self.run.iterations & (self.stride - 1) != 0 {
            return;
        }
        if self.run.series.len() == SAMPLES {
            let mut index = 0;
            self.run.series.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
        self.run.series.push(Sample { at_ns, blocks, residents: view.residents(), waiting: view.waiting_total() });
    }

    /// Writes down which groups hold the blocks that are in use.
    #[cold]
    fn divide(&mut self, view: &View) {
        fn add(sums: &mut [(String, u64)], blocks: impl Iterator<Item = u64>) {
            for ((_, sum), blocks) in sums.iter_mut().zip(blocks) {
                *sum += blocks;
            }
        }
        let (sums, layout) = (&mut self.run.peak_by_group, view.layout());
        for (_, sum) in sums.iter_mut() {
            *sum = 0;
        }
        for slot in view.iter_residents() {
            let (kv, blocks, request) = (view.kv(slot), view.blocks(slot), view.request(slot));
            let start = self.chunk_start[request.id as usize];
            // Until its first decode a request holds what its last chunk left, or all that was reserved for its prompt.
            if blocks == layout.decoding(kv) {
                add(sums, layout.decoding_by_group(kv));
            } else if blocks == layout.after(start, kv) {
                add(sums, layout.after_by_group(start, kv));
            } else {
                add(sums, layout.demand_by_group(request.prefill_target()));
            }
        }
    }

    pub(crate) fn finish_requests(&mut self, finished: &[u64], now_ns: u64) {
        for &id in finished {
            self.run.finished_ns[id as usize] = now_ns;
            self.out_of_lane(id as u32);
        }
        self.run.completed += finished.len();
    }

    pub(crate) fn finish(mut self, scheduler: &Scheduler, offered: &[Arrival]) -> Run {
        // They are the same slice where nothing is cut.
        let offered = if std::ptr::eq(self.arrivals, offered) { &[] } else { offered };
        let finished = self.run.finished_ns.iter().map(|&ns| ns != NEVER_NS);
        let outputs = self.arrivals.iter().zip(offered);
        let cut = finished.zip(outputs).filter(|&(done, (real, offered))| done && real.output < offered.output);
        self.run.finished_by_length = cut.count();
        self.run.stats = *scheduler.stats();
        self.run.learned = scheduler.learned();
        self.run.learned_law = scheduler.learned_law();
        self.run.prompt = self.arrivals.iter().map(|arrival| arrival.prompt).collect();
        self.run.output = self.arrivals.iter().map(|arrival| arrival.output).collect();
        self.run
    }
}

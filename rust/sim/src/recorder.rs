//! Records what happens in a run: for each request a row of the columns, and for each engine everything that belongs to no
//! request.

use wait_core::{Origin, Scheduler, View};

use crate::columns::{Columns, NO_LANE};
use crate::record::{NEVER_NS, Run, Sample};

/// Most samples kept of the series.
pub(crate) const SAMPLES: usize = 4096;

/// Token times of a lane's members: all had their last token at `stepped_ns`, but for the newcomers.
#[derive(Clone, Debug, Default)]
struct LaneTimes {
    stepped_ns: u64,
    /// Members whose last token is not from the lane's last step: (time of it, request).
    newcomers: Vec<(u64, u32)>,
    /// Members that joined in the current iteration.
    joined: u32,
}

/// The record of one engine.
#[derive(Debug)]
pub(crate) struct Recorder {
    run: Run,
    lanes: Vec<LaneTimes>,
    stride: u64,
}

impl Recorder {
    pub(crate) fn new(scheduler: &Scheduler, kv_blocks: u32) -> Self {
        let (lanes, groups) = (scheduler.view().lanes().len(), scheduler.view().layout().groups());
        let run = Run {
            peak_by_group: groups.iter().map(|group| (group.kind.name().to_owned(), 0)).collect(),
            kv_blocks,
            drained_ns: NEVER_NS,
            ..Run::default()
        };
        Self { run, lanes: vec![LaneTimes::default(); lanes], stride: 1 }
    }

    pub(crate) fn completed(&self) -> usize {
        self.run.completed
    }

    pub(crate) fn reject(&mut self, requests: usize) {
        self.run.failed += requests;
    }

    pub(crate) fn drain(&mut self, now_ns: u64) {
        self.run.drained_ns = now_ns;
    }

    /// The request leaves its lane, if it is in one: when was its last token?
    fn out_of_lane(&mut self, columns: &Columns, id: u32) {
        let Some(lane) = self.lanes.get_mut(usize::from(columns.lane_of.get(id as usize))) else { return };
        columns.lane_of.set(id as usize, NO_LANE);
        let at = lane.newcomers.iter().position(|&(_, other)| other == id);
        columns.last_token_ns.set(id as usize, at.map_or(lane.stepped_ns, |at| lane.newcomers.swap_remove(at).0));
    }

    /// Records which requests the last plan took out of a lane.
    pub(crate) fn parked(&mut self, columns: &Columns, scheduler: &Scheduler) {
        for &slot in scheduler.last_plan().parked() {
            self.out_of_lane(columns, scheduler.view().request(slot).id as u32);
        }
    }

    /// Records an iteration from `start_ns` to `end_ns`, as the scheduler has applied it.
    pub(crate) fn iteration(&mut self, columns: &Columns, scheduler: &Scheduler, start_ns: u64, end_ns: u64) {
        let (plan, view) = (scheduler.last_plan(), scheduler.view());
        for &(_, id) in plan.preempted() {
            columns.preemptions.count(id as usize);
            self.out_of_lane(columns, id as u32);
        }
        for &(slot, lane) in plan.unparked() {
            let id = view.request(slot).id as u32;
            columns.lane_of.set(id as usize, lane);
            self.lanes[usize::from(lane)].newcomers.push((columns.last_token_ns.get(id as usize), id));
        }
        for chunk in plan.chunks() {
            let id = chunk.id as usize;
            self.run.prefill_tokens += u64::from(chunk.tokens);
            if !columns.chunk_start.is_empty() {
                columns.chunk_start.set(id, chunk.start);
            }
            match chunk.origin {
                Origin::Resident => {}
                Origin::Admitted => {
                    if columns.admitted_ns.get(id) == NEVER_NS {
                        columns.admitted_ns.set(id, start_ns);
                    }
                    self.run.prompt_tokens += u64::from(columns.arrivals[id].prompt);
                    self.run.cached_tokens += u64::from(chunk.start);
                }
                Origin::Resumed => self.run.restored_tokens += u64::from(chunk.start),
            }
            if chunk.last {
                let request = view.request(chunk.slot);
                columns.lane_of.set(id, request.lane);
                self.lanes[usize::from(request.lane)].joined += 1;
                if columns.first_token_ns.get(id) == NEVER_NS {
                    columns.first_token_ns.set(id, end_ns);
                } else {
                    self.run.gaps.push((end_ns - columns.last_token_ns.get(id), 1));
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
            let times = &mut self.lanes[usize::from(columns.lane_of.get(chunk.id as usize))];
            if times.stepped_ns != end_ns {
                times.newcomers.push((end_ns, chunk.id as u32));
            }
        }
        self.run.decode_tokens += u64::from(plan.decodes());
        self.run.iterations += u64::from(!plan.is_empty());
        self.count_tokens(plan.tokens() as usize);
        self.sample(columns, scheduler, end_ns);
    }

    #[inline]
    fn count_tokens(&mut self, tokens: usize) {
        if tokens >= self.run.step_tokens.len() {
            self.run.step_tokens.resize(tokens + 1, 0);
        }
        self.run.step_tokens[tokens] += u64::from(tokens > 0);
    }

    /// Records how many drafts the decodes of an iteration verified, and how many were accepted.
    pub(crate) fn drafts(&mut self, verified: u64, accepted: u64) {
        self.run.draft_tokens += verified;
        self.run.accepted_tokens += accepted;
        self.run.decode_tokens += accepted;
    }

    /// Requests whose progress was corrected may be in another lane now.
    #[inline]
    pub(crate) fn moved(&mut self, columns: &Columns, scheduler: &Scheduler, progress: &[(u64, u32)]) {
        for &(id, _) in progress {
            let Some(slot) = scheduler.view().slot(id) else { continue };
            let (id, lane) = (id as u32, scheduler.view().request(slot).lane);
            if columns.lane_of.get(id as usize) != lane {
                self.out_of_lane(columns, id);
                columns.lane_of.set(id as usize, lane);
                self.lanes[usize::from(lane)].newcomers.push((columns.last_token_ns.get(id as usize), id));
            }
        }
    }

    fn sample(&mut self, columns: &Columns, scheduler: &Scheduler, at_ns: u64) {
        let view = scheduler.view();
        let blocks = view.pool().used().max(0) as u32;
        if blocks > self.run.peak_blocks {
            self.run.peak_blocks = blocks;
            if !self.run.peak_by_group.is_empty() {
                self.divide(columns, view);
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

    /// Records which groups hold the blocks that are in use.
    #[cold]
    fn divide(&mut self, columns: &Columns, view: &View) {
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
            let start = columns.chunk_start.get(request.id as usize);
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

    pub(crate) fn finish_requests(&mut self, columns: &Columns, finished: &[u64], now_ns: u64) {
        for &id in finished {
            columns.finished_ns.set(id as usize, now_ns);
            self.out_of_lane(columns, id as u32);
        }
        self.run.completed += finished.len();
    }

    /// All but the columns.
    pub(crate) fn finish(mut self, scheduler: &Scheduler) -> Run {
        self.run.stats = *scheduler.stats();
        self.run.learned = scheduler.learned();
        self.run.learned_law = scheduler.learned_law();
        self.run
    }
}

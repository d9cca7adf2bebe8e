//! Slow, obvious engines: lists of requests, walked from end to end at every iteration. They use nothing of the core.

#![allow(dead_code, unreachable_pub)] // each test uses its part

pub mod v1;
pub mod wait;

/// One request, wherever it is.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub id: u64,
    pub kind: usize,
    /// Lower goes first, where the engine goes by it.
    pub priority: i64,
    pub arrival_ns: u64,
    pub prompt: u32,
    /// Tokens after which it ends.
    pub output: u32,
    /// Tokens emitted so far.
    pub emitted: u32,
    /// Tokens in the KV cache.
    pub computed: u32,
    /// KV blocks held.
    pub held: u32,
    /// Whether its prompt (and what it had emitted) is computed: it decodes.
    pub decodes: bool,
    pub preempted: bool,
    /// Tokens that this iteration computes of it.
    pub given: u32,
}

impl Request {
    /// Tokens to compute before the next one is emitted.
    pub fn target(&self) -> u32 {
        self.prompt + self.emitted
    }
}

/// Sizes of the engine.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub blocks: u32,
    pub block_size: u32,
    pub seats: usize,
    pub budget: u32,
    /// A preempted request loses its output.
    pub restart: bool,
}

impl Sizes {
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    pub fn free(&self, running: &[Request]) -> i64 {
        i64::from(self.blocks) - running.iter().map(|request| i64::from(request.held)).sum::<i64>()
    }

    /// Takes a request out of the cache.
    pub fn evict(&self, mut request: Request) -> Request {
        (request.computed, request.held, request.decodes, request.preempted, request.given) = (0, 0, false, true, 0);
        if self.restart {
            request.emitted = 0;
        }
        request
    }
}

/// What one iteration did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub preempted: Vec<u64>,
    /// (id, tokens before, tokens computed)
    pub prefills: Vec<(u64, u32, u32)>,
    pub admitted: Vec<u64>,
    pub resumed: Vec<u64>,
    /// (id, KV tokens afterwards)
    pub decodes: Vec<(u64, u32)>,
    /// Requests that emitted a token, finished ones included.
    pub emitted: Vec<u64>,
    pub finished: Vec<u64>,
    /// KV blocks in use before the finished leave.
    pub blocks: u32,
}

impl Step {
    pub fn tokens(&self) -> u32 {
        self.decodes.len() as u32 + self.prefills.iter().map(|&(_, _, tokens)| tokens).sum::<u32>()
    }

    /// KV tokens that the iteration touches, as the paper's law counts them.
    pub fn kv(&self) -> u64 {
        let prefills = self.prefills.iter().map(|&(_, start, tokens)| u64::from(start + tokens));
        self.decodes.iter().map(|&(_, kv)| u64::from(kv)).chain(prefills).sum()
    }

    /// Computes `tokens` of a running request.
    fn compute(&mut self, request: &mut Request, tokens: u32) {
        if request.decodes {
            self.decodes.push((request.id, request.computed + tokens));
        } else {
            self.prefills.push((request.id, request.computed, tokens));
        }
        let complete = request.computed + tokens == request.target();
        request.computed += tokens;
        if complete {
            request.decodes = true;
            request.emitted += 1;
            self.emitted.push(request.id);
        }
    }

    /// Removes the requests that have emitted everything.
    fn finish(&mut self, running: &mut Vec<Request>) {
        self.blocks = running.iter().map(|request| request.held).sum();
        running.retain(|request| {
            let ended = request.emitted == request.output && request.decodes;
            if ended {
                self.finished.push(request.id);
            }
            !ended
        });
    }
}

/// What the simulator's reference loop needs of an engine.
pub trait Engine {
    fn add(&mut self, request: Request);
    /// One iteration at this time.
    fn step(&mut self, now_ns: u64) -> Step;
    /// No more arrivals will come.
    fn drain(&mut self) {}
    /// When the last step would have been different even without an event, ns.
    fn wake_ns(&self) -> Option<u64> {
        None
    }
    fn running(&self) -> &[Request];
    fn waiting(&self) -> usize;
}

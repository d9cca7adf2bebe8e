mod pool;
mod vllm;

use proptest::prelude::*;

use super::*;
use pool::Pool;

impl PrefixCache {
    /// The queue of free blocks: how many anonymous ones, and the hashes of the named ones behind them.
    pub(crate) fn queue(&self) -> (i64, Vec<u64>) {
        let after = |at: u32| self.named[at as usize].links[QUEUE].next;
        let blocks = std::iter::successors(Some(after(NIL)), |&at| Some(after(at))).take_while(|&at| at != NIL);
        let hashes: Vec<u64> = blocks.map(|at| self.named[at as usize].hash).collect();
        assert_eq!(hashes.len(), self.queued as usize);
        (self.free() - i64::from(self.queued), hashes)
    }
}

/// A cache that has seen requests of five blocks, of which four are named.
fn used(capacity: u32, requests: &[[u64; 4]]) -> PrefixCache {
    let mut cache = PrefixCache::new(capacity);
    for hashes in requests {
        let mut blocks = Vec::new();
        let hit = cache.take_prefix(hashes, &mut blocks);
        cache.take(5 - hit.blocks);
        blocks.extend(hashes[hit.blocks as usize..].iter().map(|&hash| cache.name(hash)));
        cache.give(&blocks, 1);
    }
    cache
}

#[test]
fn what_is_freed_is_cached_until_its_blocks_are_taken_tails_and_older_requests_first() {
    let mut cache = used(12, &[[1, 2, 3, 4], [11, 12, 13, 14]]);
    assert_eq!(cache.queue(), (4, vec![4, 3, 2, 1, 14, 13, 12, 11]));
    assert_eq!(cache.hit(&[1, 2, 3, 4, 5]), Hit { blocks: 4, held: 0 });
    cache.take(6);
    assert_eq!((cache.free(), cache.queue()), (6, (0, vec![2, 1, 14, 13, 12, 11])));
    assert_eq!(cache.hit(&[1, 2, 3, 4, 5]), Hit { blocks: 2, held: 0 });
    assert_eq!(cache.hit(&[3, 4]), Hit::default());
}

#[test]
fn a_prefix_that_is_hit_is_used_again_and_shared() {
    let mut cache = used(12, &[[1, 2, 3, 4], [11, 12, 13, 14]]);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    assert_eq!(cache.take_prefix(&[1, 2, 9], &mut one), Hit { blocks: 2, held: 0 });
    assert_eq!((cache.free(), cache.hit(&[1, 2, 3])), (10, Hit { blocks: 3, held: 2 }));
    assert_eq!(cache.take_prefix(&[1, 2, 3], &mut two), Hit { blocks: 3, held: 2 });
    assert_eq!(one[..], two[..2]);
    assert_eq!((cache.free(), cache.queue()), (9, (4, vec![4, 14, 13, 12, 11])));
    cache.give(&two, 0);
    assert_eq!(cache.queue(), (4, vec![4, 14, 13, 12, 11, 3]), "the first request still holds the others");
    cache.give(&one, 0);
    assert_eq!(cache.queue(), (4, vec![4, 14, 13, 12, 11, 3, 2, 1]));
}

#[test]
fn a_name_taken_back_is_not_found_and_others_keep_the_block() {
    let mut cache = PrefixCache::new(6);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    cache.take(2);
    one.extend([cache.name(1), cache.name(2)]);
    cache.take_prefix(&[1], &mut two);
    cache.unname(one[1]);
    assert_eq!((cache.free(), cache.hit(&[1, 2])), (4, Hit { blocks: 1, held: 1 }), "the same block, without its name");
    cache.unname(one[0]);
    assert_eq!((cache.free(), cache.hit(&[1, 2])), (3, Hit::default()), "another block, for the second has it");
    cache.take(1);
    let again = cache.name(1);
    assert_eq!(cache.hit(&[1]), Hit { blocks: 1, held: 1 });
    cache.give(&[again], 0);
    cache.give(&[], 2);
    cache.give(&two, 0);
    assert_eq!((cache.free(), cache.queue()), (6, (4, vec![1, 1])));
    cache.take(5);
    assert_eq!(cache.hit(&[1]), Hit::default(), "the one computed again was the first to be evicted");
}

#[test]
fn of_two_blocks_with_one_hash_the_one_named_first_is_hit_until_it_is_evicted() {
    let mut cache = PrefixCache::new(3);
    cache.take(2);
    let (first, second) = (cache.name(7), cache.name(7));
    assert_ne!(first, second);
    cache.give(&[second], 0);
    assert_eq!((cache.free(), cache.hit(&[7])), (2, Hit { blocks: 1, held: 1 }));
    cache.give(&[first], 0);
    assert_eq!((cache.queue(), cache.hit(&[7])), ((1, vec![7, 7]), Hit { blocks: 1, held: 0 }));
    cache.take(2);
    assert_eq!(cache.hit(&[7]).blocks, 1, "the second one went, which was given back before");
    let mut hit = Vec::new();
    cache.take_prefix(&[7], &mut hit);
    assert_eq!(hit, [first]);
    let third = cache.name(7);
    cache.give(&hit, 1);
    cache.take(2);
    hit.clear();
    cache.take_prefix(&[7], &mut hit);
    assert_eq!(hit, [third]);
}

#[test]
fn capacity_may_shrink_below_use_and_grow_again() {
    let mut cache = used(12, &[[1, 2, 3, 4], [11, 12, 13, 14]]);
    let mut blocks = Vec::new();
    cache.take_prefix(&[11, 12], &mut blocks);
    cache.set_capacity(4);
    assert_eq!((cache.free(), cache.queue()), (2, (0, vec![14, 13])));
    cache.set_capacity(1);
    assert_eq!((cache.free(), cache.hit(&[11, 12, 13])), (-1, Hit { blocks: 2, held: 2 }));
    cache.give(&blocks, 0);
    assert_eq!(cache.queue(), (0, vec![11]), "the tail of what is given back makes good what was missing");
    cache.set_capacity(3);
    assert_eq!(cache.queue(), (2, vec![11]));
    assert_eq!(cache.capacity(), 3);
}

#[test]
fn it_is_reset_only_while_nothing_is_held() {
    let mut cache = used(12, &[[1, 2, 3, 4]]);
    let mut blocks = Vec::new();
    cache.take_prefix(&[1], &mut blocks);
    assert!(!cache.reset());
    assert_eq!(cache.hit(&[1, 2]).blocks, 2);
    cache.give(&blocks, 0);
    assert!(cache.reset());
    assert_eq!((cache.queue(), cache.hit(&[1])), ((12, vec![]), Hit::default()));
    cache.take(1);
    cache.name(1);
    assert_eq!(cache.hit(&[1]), Hit { blocks: 1, held: 1 });
}

#[test]
fn a_cache_that_has_filled_up_allocates_nothing() {
    let mut cache = PrefixCache::new(1000);
    let mut sizes = Vec::new();
    for round in 0..20 {
        for request in 0..200 {
            cache.take(10);
            let blocks: [Block; 10] = std::array::from_fn(|i| cache.name((round * 200 + request) * 10 + i as u64));
            cache.give(&blocks, 0);
        }
        sizes.push((cache.named.len(), cache.index.size()));
    }
    assert_eq!(sizes, vec![(1001, 2048); 20]);
}

#[derive(Clone, Debug)]
enum Op {
    /// A request with the prefix of this path of branches; the given number of its blocks will be named, and more
    /// follow.
    Admit {
        path: Vec<bool>,
        most: usize,
        named: usize,
        more: u32,
    },
    /// The request at this place, modulo their number, grows by anonymous blocks.
    Grow(usize, u32),
    /// It has its next block named.
    Name(usize),
    /// It frees its anonymous blocks.
    Trim(usize),
    Finish(usize),
    Resize(u32),
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    let admit = (prop::collection::vec(any::<bool>(), 0..7), 0..8usize, 0..8usize, 0..3u32)
        .prop_map(|(path, most, named, more)| Op::Admit { path, most, named, more });
    prop_oneof![
        8 => admit,
        3 => (any::<usize>(), 0..4u32).prop_map(|(at, blocks)| Op::Grow(at, blocks)),
        4 => any::<usize>().prop_map(Op::Name),
        1 => any::<usize>().prop_map(Op::Trim),
        6 => any::<usize>().prop_map(Op::Finish),
        1 => (0..24u32).prop_map(Op::Resize),
        1 => Just(Op::Reset),
    ]
}

/// One hash for each path from the root: the path itself, as a number.
fn hashes(path: &[bool]) -> Vec<u64> {
    let step = |at: &mut u64, &branch: &bool| {
        *at = 2 * *at + u64::from(branch);
        Some(*at)
    };
    path.iter().scan(1, step).collect()
}

#[derive(Default)]
struct Request {
    hashes: Vec<u64>,
    blocks: Vec<Block>,
    anonymous: u32,
    /// All its blocks in the oracle.
    ids: Vec<usize>,
}

impl Request {
    fn name(&mut self, cache: &mut PrefixCache, pool: &mut Pool) {
        let next = self.blocks.len();
        if self.anonymous > 0 && next < self.hashes.len() {
            self.anonymous -= 1;
            self.blocks.push(cache.name(self.hashes[next]));
            pool.name(self.ids[next], self.hashes[next]);
        }
    }

    fn grow(&mut self, blocks: u32, cache: &mut PrefixCache, pool: &mut Pool) {
        self.anonymous += blocks;
        cache.take(blocks);
        self.ids.extend(pool.take(blocks));
    }
}

proptest! {
    #[test]
    fn it_is_a_pool_of_blocks(capacity in 0..24u32, ops in prop::collection::vec(op(), 0..80)) {
        let (mut cache, mut pool) = (PrefixCache::new(capacity), Pool::new(capacity));
        let mut requests: Vec<Request> = Vec::new();
        for op in ops {
            let len = requests.len();
            match op {
                Op::Admit { path, most, named, more } => {
                    let mut request = Request { hashes: hashes(&path), ..Request::default() };
                    let prefix = &request.hashes[..most.min(path.len())];
                    let expected = pool.hit(prefix);
                    prop_assert_eq!(cache.hit(prefix), expected);
                    prop_assert_eq!(cache.take_prefix(prefix, &mut request.blocks), expected);
                    request.ids = pool.take_prefix(prefix);
                    let blocks = path.len() as u32 + more - expected.blocks;
                    request.grow(blocks, &mut cache, &mut pool);
                    (request.blocks.len()..named).for_each(|_| request.name(&mut cache, &mut pool));
                    requests.push(request);
                }
                Op::Grow(at, blocks) if len > 0 => requests[at % len].grow(blocks, &mut cache, &mut pool),
                Op::Name(at) if len > 0 => requests[at % len].name(&mut cache, &mut pool),
                Op::Trim(at) if len > 0 => {
                    let request = &mut requests[at % len];
                    cache.give(&[], std::mem::take(&mut request.anonymous));
                    pool.give(&request.ids.split_off(request.blocks.len()));
                }
                Op::Finish(at) if len > 0 => {
                    let request = requests.swap_remove(at % len);
                    cache.give(&request.blocks, request.anonymous);
                    pool.give(&request.ids);
                }
                Op::Resize(blocks) => {
                    cache.set_capacity(blocks);
                    pool.set_capacity(blocks);
                }
                Op::Reset => prop_assert_eq!(cache.reset(), pool.reset()),
                _ => {}
            }
            prop_assert_eq!(cache.free(), pool.free());
            prop_assert_eq!(cache.queue(), pool.queue());
            for hash in 2..128 {
                prop_assert_eq!(cache.hit(&[hash]), pool.hit(&[hash]), "hash {}", hash);
            }
            // The same block always remains the same: equal by handle is equal by id.
            let held = || requests.iter().flat_map(|request| request.blocks.iter().zip(&request.ids));
            for (block, id) in held() {
                for (other, other_id) in held() {
                    prop_assert_eq!(block == other, id == other_id);
                }
            }
        }
    }
}

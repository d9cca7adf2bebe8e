use super::*;
use std::hint::black_box;
use std::time::Instant;
fn mix(i: u64) -> u64 {
    let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 31
}
#[test]
#[ignore = "prints times; for a release build"]
fn bench() {
    for capacity in [4096u32, 65536, 1 << 20] {
        let mut cache = PrefixCache::new(capacity);
        let n = u64::from(capacity) / 32 - 1;
        let prompts: Vec<Vec<u64>> = (0..n).map(|r| (0..32).map(|b| mix(r * 32 + b)).collect()).collect();
        for p in &prompts {
            cache.take(32);
            let b: Vec<Block> = p.iter().map(|&h| cache.name(h)).collect();
            cache.give(&b, 0);
        }
        let order: Vec<usize> = (0..200_000u64).map(|i| (mix(i ^ 0x00ab_cdef) % n) as usize).collect();
        let mut best = [f64::INFINITY; 5];
        for _ in 0..5 {
            let mut each = |k: usize, times: usize, f: &mut dyn FnMut(usize)| {
                let t = Instant::now();
                for i in 0..times {
                    f(i);
                }
                best[k] = best[k].min(t.elapsed().as_nanos() as f64 / times as f64);
            };
            each(0, order.len(), &mut |i| {
                black_box(cache.hit(black_box(&prompts[order[i]])));
            });
            let mut blocks = Vec::with_capacity(64);
            each(1, order.len(), &mut |i| {
                blocks.clear();
                black_box(cache.take_prefix(black_box(&prompts[order[i]]), &mut blocks));
                cache.give(&blocks, 0);
            });
            each(2, order.len(), &mut |_| {
                cache.take(black_box(10));
                cache.give(&[], black_box(10));
            });
        }
        // Full churn: every block taken evicts one; names fresh each time.
        let mut next = 1u64 << 40;
        let mut c2 = cache.clone();
        c2.take(20);
        let mut ring: Vec<[Block; 10]> = Vec::new();
        c2.give(&[], 20);
        for _ in 0..5 {
            let times = 200_000;
            let t = Instant::now();
            for _ in 0..times {
                c2.take(10);
                let b: [Block; 10] = std::array::from_fn(|_| {
                    next += 1;
                    c2.name(next)
                });
                c2.give(&b, 0);
            }
            best[3] = best[3].min(t.elapsed().as_nanos() as f64 / times as f64);
        }
        ring.clear();
        println!(
            "{capacity:8} blocks: hit of 32 {:.0} ns, join+give 32 {:.0} ns, take+give 10 anonymous {:.1} ns, take+name+give 10, evicting 10: {:.0} ns",
            best[0], best[1], best[2], best[3]
        );
    }
}

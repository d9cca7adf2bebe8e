//! The same as vLLM's own KV cache manager did. How the record was made, and what its lines mean, is in
//! tests/with_vllm/test_block_pool.py.

use std::collections::HashMap;

use super::*;

const RECORD: &str = include_str!("../../../../tests/data/block_pool.txt");

#[derive(Default)]
struct Request {
    blocks: Vec<Block>,
    anonymous: u32,
}

#[test]
fn it_does_what_vllm_does() {
    let mut cache = PrefixCache::new(0);
    let mut requests: HashMap<u64, Request> = HashMap::new();
    for (line, text) in (1..).zip(RECORD.lines()) {
        let (what, numbers) = text.split_once(' ').expect("a word, and numbers");
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().expect("a number")).collect();
        let hit = |of: &[u64]| Hit { blocks: of[0] as u32, held: of[1] as u32 };
        match (what, numbers.as_slice()) {
            ("capacity", &[blocks]) => cache.set_capacity(blocks as u32),
            ("hit", of) => assert_eq!(cache.hit(&of[2..]), hit(of), "line {line}: {text}"),
            ("join", [id, of @ ..]) => {
                assert_eq!(cache.hit(&of[2..]), hit(of), "line {line}: {text}");
                let request = requests.entry(*id).or_default();
                assert_eq!(cache.take_prefix(&of[2..], &mut request.blocks), hit(of), "line {line}: {text}");
            }
            ("take", &[id, blocks]) => {
                cache.take(blocks as u32);
                requests.get_mut(&id).expect("it joined").anonymous += blocks as u32;
            }
            ("name", [id, hashes @ ..]) => {
                let request = requests.get_mut(id).expect("it joined");
                request.blocks.extend(hashes.iter().map(|&hash| cache.name(hash)));
                request.anonymous -= hashes.len() as u32;
            }
            ("give", [id]) => {
                let request = requests.remove(id).expect("it joined");
                cache.give(&request.blocks, request.anonymous);
            }
            ("free", [anonymous, hashes @ ..]) => {
                assert_eq!(cache.queue(), (*anonymous as i64, hashes.to_vec()), "line {line}");
                assert_eq!(cache.free(), *anonymous as i64 + hashes.len() as i64, "line {line}");
            }
            _ => panic!("line {line}: {text}"),
        }
    }
}

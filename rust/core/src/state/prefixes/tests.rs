//! The same as vLLM's own KV cache manager did with several groups. How the record was made, and what its lines mean, is in
//! tests/with_vllm/test_block_pool.py.

use std::collections::HashMap;

use super::*;
use crate::memory::KvGroup;

const RECORD: &str = include_str!("../../../tests/data/block_pool_groups.txt");

struct Replay {
    layout: KvLayout,
    prefixes: Prefixes,
    /// Hashes and blocks of each request.
    requests: HashMap<Slot, (Vec<u64>, u32)>,
}

impl Replay {
    fn new(line: &str) -> Self {
        let (blocks, groups) = line.split_once(' ').expect("blocks, and groups");
        let groups: Vec<KvGroup> = serde_json::from_str(groups).expect("groups");
        let layout = KvLayout::new(4, &groups, 256, 0);
        Self { prefixes: Prefixes::new(blocks.parse().expect("a number"), &layout), layout, requests: HashMap::new() }
    }

    /// What is free: anonymous blocks, and the keys of the named ones.
    fn free(&self) -> (i64, Vec<u64>) {
        self.prefixes.cache.queue()
    }

    fn key(&self, group: usize, hash: u64) -> u64 {
        let row = &self.prefixes.groups.as_ref().expect("several groups").rows()[group];
        let hashes = vec![hash; 2];
        row.key(&hashes, 0)
    }

    fn follow(&mut self, what: &str, numbers: &[u64]) {
        let Self { layout, prefixes, requests } = self;
        match (what, numbers) {
            ("find", &[target, tokens, held, ref hashes @ ..]) => {
                prefixes.insert(0, hashes);
                let found = prefixes.find_in_groups(0, target as u32);
                let found = found.map_or((0, 0), |found| (u64::from(found.tokens), u64::from(found.held)));
                assert_eq!(found, (tokens, held), "tokens found, and their blocks that a request holds");
                requests.insert(0, (hashes.to_vec(), target as u32));
            }
            ("join", &[id]) => {
                let (hashes, target) = requests.remove(&0).expect("it was looked up");
                prefixes.insert(id as Slot, &hashes);
                let hit = prefixes.admit(id as Slot, target).unwrap_or_default();
                requests.insert(id as Slot, (hashes, layout.filled(hit.computed)));
            }
            ("step", &[id, start, end, ref more @ ..]) => {
                let (slot, start, end) = (id as Slot, start as u32, end as u32);
                let (hashes, held) = requests.get_mut(&slot).expect("it joined");
                hashes.extend(more);
                match prefixes.chains.get_mut(slot as usize).and_then(Option::as_deref_mut) {
                    Some(chain) => chain.hashes = hashes.as_slice().into(),
                    None => prefixes.insert(slot, hashes),
                }
                let blocks = layout.after(start, end);
                let left = prefixes.leave_groups(slot, start, *held);
                prefixes.take(i64::from(blocks) - i64::from(*held) + i64::from(left));
                prefixes.fill(slot, end, blocks);
                *held = blocks;
            }
            ("leave", &[id, start]) => {
                let (_, held) = requests.get_mut(&(id as Slot)).expect("it joined");
                let blocks = layout.after(start as u32, start as u32);
                let left = prefixes.leave_groups(id as Slot, start as u32, *held);
                prefixes.take(i64::from(blocks) - i64::from(*held) + i64::from(left));
                *held = blocks;
            }
            ("give", &[id]) => {
                let (_, held) = requests.remove(&(id as Slot)).expect("it joined");
                prefixes.release_groups(id as Slot, held);
            }
            _ => panic!("{what} {numbers:?}"),
        }
    }
}

#[test]
fn it_does_what_vllm_does() {
    let mut replay: Option<Replay> = None;
    for (line, text) in (1..).zip(RECORD.lines()) {
        let (what, rest) = text.split_once(' ').expect("a word, and more");
        if what == "groups" {
            replay = Some(Replay::new(rest));
            continue;
        }
        let replay = replay.as_mut().expect("groups come first");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        if what == "free" {
            let mut fields = rest.split(' ');
            let anonymous = fields.next().map_or(0, number) as i64;
            let pairs = fields.map(|field| field.split_once(':').expect("a group and a hash"));
            let named = pairs.map(|(group, hash)| replay.key(number(group) as usize, number(hash))).collect();
            assert_eq!(replay.free(), (anonymous, named), "line {line}: {text}");
        } else {
            replay.follow(what, &rest.split(' ').map(number).collect::<Vec<_>>());
        }
    }
}

//! Which prefixes requests have in common, as hashes of blocks: each hash identifies a block and everything before it.
//!
//! A rule generates the hashes where possible, and a trace brings its own; in neither case does a request store a
//! vector.

use wait_core::{Error, Result};

use crate::requests::{Follow, Requests};

/// What is known of the prefixes that requests have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Prefixes<'a> {
    /// Nothing: no request shares anything with another.
    #[default]
    Distinct,
    /// All prompts begin with the same `system` tokens, and one that follows another repeats that one's prompt and output.
    Conversations {
        /// Tokens of the system prompt; every prompt is longer.
        system: u32,
    },
    /// A trace names the blocks of each request: equal leading ids are equal prefixes.
    Named {
        /// Ids of all requests, one after the other. They may run on beyond the prompt into the output.
        ids: &'a [u64],
        /// Request i has `ids[offsets[i]..offsets[i + 1]]`.
        offsets: &'a [u64],
        /// Tokens that one id covers; the one at the end of a prompt may cover fewer.
        tokens: u32,
    },
}

/// 2^64 divided by the golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection that spreads every bit over all.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Hash of `part` after the prefix with hash `prefix`; the two do not commute.
fn join(prefix: u64, part: u64) -> u64 {
    mix(mix(prefix).wrapping_add(part.wrapping_mul(GOLDEN)))
}

impl Prefixes<'_> {
    pub(crate) fn check(&self, requests: &Requests) -> Result<()> {
        match *self {
            Self::Distinct => Ok(()),
            Self::Conversations { system } => {
                let short = requests.arrivals.iter().position(|arrival| arrival.prompt <= system);
                short.map_or(Ok(()), |i| {
                    let rule = format!("must be above {system}, the tokens of the system prompt");
                    Err(Error::invalid(format!("arrivals[{i}].prompt"), requests.arrivals[i].prompt, rule))
                })
            }
            Self::Named { ids, offsets, tokens } => {
                if tokens == 0 {
                    return Err(Error::invalid("prefixes.tokens", tokens, "must be at least 1"));
                }
                let ends = (offsets.first(), offsets.last());
                let right = offsets.len() == requests.arrivals.len() + 1 && offsets.is_sorted();
                if right && ends == (Some(&0), Some(&(ids.len() as u64))) {
                    return Ok(());
                }
                let rule = format!("must rise from 0 to {}, one more than the requests", ids.len());
                Err(Error::invalid("prefixes.offsets", format!("{} values", offsets.len()), rule))
            }
        }
    }
}

impl Requests<'_> {
    /// Writes the hashes of the full blocks of request `id` to `hashes`: those of its prompt, and of its output as far
    /// as another request is known to share it.
    pub fn block_hashes(&self, id: usize, block_size: u32, hashes: &mut Vec<u64>) {
        hashes.clear();
        match self.prefixes {
            Prefixes::Distinct => {}
            Prefixes::Conversations { system } => self.conversation_hashes(id, system, block_size, hashes),
            Prefixes::Named { ids, offsets, tokens } => {
                let ids = &ids[offsets[id] as usize..offsets[id + 1] as usize];
                let (named, prompt) = (ids.len() as u64 * u64::from(tokens), u64::from(self.arrivals[id].prompt));
                // An id that begins within the prompt does not identify the output.
                let within = named < prompt + u64::from(tokens);
                let length = named.min(if within { prompt } else { self.length(id) });
                let (mut taken, mut prefix) = (0, 0);
                for end in (u64::from(block_size)..=length).step_by(block_size as usize) {
                    while taken * u64::from(tokens) < end {
                        prefix = join(prefix, ids[taken as usize]);
                        taken += 1;
                    }
                    // Several blocks of one id differ by where they end.
                    hashes.push(join(prefix, end));
                }
            }
        }
    }

    /// Prompt and output, tokens.
    fn length(&self, id: usize) -> u64 {
        u64::from(self.arrivals[id].prompt) + u64::from(self.arrivals[id].output)
    }

    /// A block belongs to the system prompt, or else to the first of the turns up to this one that reaches its end.
    fn conversation_hashes(&self, id: usize, system: u32, block_size: u32, hashes: &mut Vec<u64>) {
        let block = u64::from(block_size);
        let mut owner = id;
        let mut before = self.follow(id);
        hashes.extend((1..=self.length(id) / block).rev().map(|number| {
            let end = number * block;
            while let Some(Follow { after, .. }) = before.filter(|turn| self.length(turn.after as usize) >= end) {
                owner = after as usize;
                before = self.follow(owner);
            }
            // 0 names the system prompt.
            let name = if end <= u64::from(system) { 0 } else { owner as u64 + 1 };
            join(name, number)
        }));
        hashes.reverse();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::requests::Arrival;

    /// Texts of (author, position) tokens, written out.
    fn texts(requests: &Requests, system: u32) -> Vec<Vec<(u64, u64)>> {
        let mut texts: Vec<Vec<(u64, u64)>> = Vec::new();
        for (id, arrival) in requests.arrivals.iter().enumerate() {
            let mut text: Vec<_> = match requests.follow(id) {
                Some(follow) => texts[follow.after as usize].clone(),
                None => (0..u64::from(system)).map(|at| (0, at)).collect(),
            };
            let length = u64::from(arrival.prompt + arrival.output);
            text.extend((text.len() as u64..length).map(|at| (id as u64 + 1, at)));
            texts.push(text);
        }
        texts
    }

    /// Two blocks have the same hash if and only if all the text up to their ends is the same.
    fn stand_for_prefixes(requests: &Requests, texts: &[Vec<(u64, u64)>], block: u32) {
        let (mut hashes, mut named) = (Vec::new(), HashMap::new());
        let mut prefixes = HashMap::new();
        for (id, text) in texts.iter().enumerate() {
            requests.block_hashes(id, block, &mut hashes);
            assert_eq!(hashes.len(), text.len() / block as usize, "every full block has one");
            for (i, &hash) in hashes.iter().enumerate() {
                let prefix = &text[..(i + 1) * block as usize];
                assert_eq!(*named.entry(hash).or_insert(prefix), prefix);
                assert_eq!(*prefixes.entry(prefix).or_insert(hash), hash);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equal_hashes_are_equal_texts_of_conversations(
            rows in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 1..30u32, 1..30u32), 1..12),
            system in 0..40u32,
            block in 1..20u32,
        ) {
            let mut arrivals: Vec<Arrival> = Vec::new();
            let mut follows = Vec::new();
            for (id, (before, alone, new, output)) in rows.into_iter().enumerate() {
                let after = (id > 0 && !alone).then(|| before.index(id));
                let held = after.map_or(system, |after| arrivals[after].prompt + arrivals[after].output);
                arrivals.push(Arrival { at_ns: 0, prompt: held + new, output, label: 0 });
                follows.push(after.map(|after| Follow { after: after as u32, think_ns: 0 }));
            }
            let prefixes = Prefixes::Conversations { system };
            let requests = Requests { arrivals: &arrivals, follows: &follows, prefixes };
            prop_assert_eq!(requests.check(), Ok(()));
            stand_for_prefixes(&requests, &texts(&requests, system), block);
        }

        #[test]
        fn equal_hashes_are_equal_leading_ids(
            rows in prop::collection::vec((prop::collection::vec(0..3u64, 0..6), 1..16u32), 1..12),
            tokens in 1..10u32,
            parts in 1..4u32,
        ) {
            // Every request ends with its last id, and the block divides what an id covers, or is a multiple of it.
            let (mut ids, mut offsets, mut arrivals, mut texts) = (Vec::new(), vec![0], Vec::new(), Vec::new());
            for (own, extra) in rows {
                let text: Vec<_> = own.iter().flat_map(|&id| (0..u64::from(tokens * parts)).map(move |at| (id, at))).collect();
                arrivals.push(Arrival { at_ns: 0, prompt: text.len() as u32 + extra, output: 1, label: 0 });
                texts.push(text);
                ids.extend(own);
                offsets.push(ids.len() as u64);
            }
            let prefixes = Prefixes::Named { ids: &ids, offsets: &offsets, tokens: tokens * parts };
            let requests = Requests { arrivals: &arrivals, follows: &[], prefixes };
            prop_assert_eq!(requests.check(), Ok(()));
            stand_for_prefixes(&requests, &texts, tokens);
            stand_for_prefixes(&requests, &texts, tokens * parts);
            stand_for_prefixes(&requests, &texts, tokens * parts * 2);
        }
    }

    #[test]
    fn a_last_id_that_stands_for_fewer_tokens_has_no_block_beyond_the_request() {
        let arrivals = [Arrival { at_ns: 0, prompt: 20, output: 5, label: 0 }];
        let prefixes = Prefixes::Named { ids: &[7, 8], offsets: &[0, 2], tokens: 16 };
        let requests = Requests { arrivals: &arrivals, follows: &[], prefixes };
        let mut hashes = Vec::new();
        requests.block_hashes(0, 4, &mut hashes);
        assert_eq!(hashes.len(), 5, "the prompt's 20 tokens");
        let prefixes = Prefixes::Named { ids: &[7, 8], offsets: &[0, 2], tokens: 12 };
        Requests { prefixes, ..requests }.block_hashes(0, 4, &mut hashes);
        assert_eq!(hashes.len(), 5);
        let prefixes = Prefixes::Named { ids: &[7, 8, 9], offsets: &[0, 3], tokens: 8 };
        Requests { prefixes, ..requests }.block_hashes(0, 4, &mut hashes);
        assert_eq!(hashes.len(), 5);
        let prefixes = Prefixes::Named { ids: &[7, 8, 9, 1, 2, 3], offsets: &[0, 6], tokens: 4 };
        Requests { prefixes, ..requests }.block_hashes(0, 4, &mut hashes);
        assert_eq!(hashes.len(), 6, "an id of the output is a whole one");
    }

    #[test]
    fn bad_prefixes_are_refused_by_name() {
        let arrivals = [Arrival { at_ns: 0, prompt: 20, output: 5, label: 0 }];
        let refused =
            |prefixes| Requests { arrivals: &arrivals, follows: &[], prefixes }.check().unwrap_err().to_string();
        let named = |offsets, tokens| Prefixes::Named { ids: &[7, 8], offsets, tokens };
        assert!(
            refused(Prefixes::Conversations { system: 20 }).starts_with("arrivals[0].prompt = 20: must be above 20")
        );
        assert!(refused(named(&[0, 2], 0)).starts_with("prefixes.tokens = 0: "));
        for offsets in [&[0, 1][..], &[1, 2], &[0, 2, 2], &[0, 3], &[]] {
            assert!(refused(named(offsets, 16)).starts_with("prefixes.offsets = "), "{offsets:?}");
        }
    }
}

//! The future KV use of residents whose lengths are known, exactly, block by block.
//!
//! All residents step together, so at tick t a member of base b (tick minus KV tokens, see `Lane`) holds ⌈(t − b)/B⌉
//! blocks up to its last tick. Between two releases the total only grows: it is largest just before them. In a cache of
//! several groups each is charged the most that its tokens ever take, which only grows as well.

use std::collections::BTreeMap;

use crate::memory::KvLayout;

/// A request's course: its KV is tick − base up to `last`, and at least `prompt` from its admission on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// Last tick at which it holds KV.
    pub(super) last: i64,
    pub(super) base: i64,
    /// KV tokens reserved while its prompt is being computed.
    pub(super) prompt: u32,
}

/// Why a course does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow {
    /// Most blocks that would be in use.
    pub(super) blocks: i64,
    /// Least number of ticks after which it may fit, provided that no request leaves early.
    pub(super) ticks: i64,
}

/// The courses of all residents.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    block_size: i64,
    /// Of a cache of several groups.
    layout: Option<KvLayout>,
    /// Bases by last tick.
    releases: BTreeMap<i64, Vec<i64>>,
    members: u32,
    /// Scratch: how many of those alive have base ≡ r (mod B).
    phases: Vec<i64>,
}

impl Profile {
    pub(super) fn new(layout: &KvLayout) -> Self {
        let phases = vec![0; layout.block_size() as usize];
        let several = (!layout.groups().is_empty()).then(|| layout.clone());
        Self {
            block_size: i64::from(layout.block_size()),
            layout: several,
            releases: BTreeMap::new(),
            members: 0,
            phases,
        }
    }

    pub(super) fn insert(&mut self, course: Course) {
        self.releases.entry(course.last).or_default().push(course.base);
        self.members += 1;
    }

    pub(super) fn remove(&mut self, course: Course) {
        let Some(bases) = self.releases.get_mut(&course.last) else { return };
        if let Some(at) = bases.iter().position(|&base| base == course.base) {
            bases.swap_remove(at);
            self.members -= 1;
        }
        if bases.is_empty() {
            self.releases.remove(&course.last);
        }
    }

    /// How many have not been released at a tick or before; ticks must be queried in ascending order.
    pub(super) fn alive(&self) -> impl FnMut(i64) -> u32 + '_ {
        let mut releases = self.releases.iter().peekable();
        let mut alive = self.members;
        move |tick| {
            while let Some((_, bases)) = releases.next_if(|&(&last, _)| last <= tick) {
                alive -= bases.len() as u32;
            }
            alive
        }
    }

    /// Checks that one more course keeps within `capacity` blocks at every tick.
    ///
    /// # Errors
    /// [`Overflow`] where it does not.
    pub(super) fn check(&mut self, course: Course, capacity: i64) -> Result<(), Overflow> {
        if let Some(layout) = &self.layout {
            return self.check_groups(layout, course, capacity);
        }
        self.phases.fill(0);
        let (mut count, mut quotients) = (0, 0);
        let mut worst = Overflow { blocks: 0, ticks: 0 };
        let mut exceed = |blocks: i64, ticks: i64| {
            worst = Overflow { blocks: worst.blocks.max(blocks), ticks: worst.ticks.max(ticks).max(1) };
        };
        // From the last release back, `alive` counts those released there or later.
        let (mut end, mut later) = (Some(course.last), None);
        let releases = self.releases.iter().rev().map(|(&last, bases)| (last, bases.as_slice()));
        for (last, bases) in releases.chain([(i64::MIN, [].as_slice())]) {
            if end.is_some_and(|end| last < end) {
                end = None;
                let blocks = total(course.last, self.block_size, count, quotients, &self.phases)
                    + blocks_for(course.tokens(course.last), self.block_size);
                if blocks > capacity {
                    // The others only grow until the next release: its own release must come after that.
                    exceed(blocks, later.map_or(1, |later: i64| later - course.last + 1));
                }
            }
            for base in bases {
                count += 1;
                quotients += base.div_euclid(self.block_size);
                self.phases[base.rem_euclid(self.block_size) as usize] += 1;
            }
            if last <= course.last && last != i64::MIN {
                let others = total(last, self.block_size, count, quotients, &self.phases);
                let blocks = others + blocks_for(course.tokens(last), self.block_size);
                if blocks > capacity {
                    let room = (capacity - others) * self.block_size;
                    let joined = course.base + i64::from(course.prompt);
                    let behind = last - course.base - room;
                    // It must have grown less by then, or come after that release.
                    exceed(blocks, if room >= i64::from(course.prompt) { behind } else { last - joined + 1 });
                }
            }
            later = Some(last);
        }
        if worst.ticks == 0 { Ok(()) } else { Err(worst) }
    }
}

impl Profile {
    /// As `check`, one member at a time: what a group takes is not additive in its members.
    fn check_groups(&self, layout: &KvLayout, course: Course, capacity: i64) -> Result<(), Overflow> {
        let most = |tokens: i64| i64::from(layout.demand(tokens.clamp(0, i64::from(u32::MAX)) as u32));
        let ends = self.releases.keys().copied().filter(|&last| last < course.last).chain([course.last]);
        let total = |tick: i64| {
            let others = self.releases.range(tick..).flat_map(|(_, bases)| bases);
            others.map(|base| most(tick - base)).sum::<i64>() + most(course.tokens(tick))
        };
        let worst = ends.map(total).max().unwrap_or(0);
        if worst <= capacity { Ok(()) } else { Err(Overflow { blocks: worst, ticks: 1 }) }
    }
}

impl Course {
    fn tokens(self, tick: i64) -> i64 {
        i64::from(self.prompt).max(tick - self.base)
    }
}

fn blocks_for(tokens: i64, block_size: i64) -> i64 {
    (tokens + block_size - 1).div_euclid(block_size)
}

/// Blocks at `tick` of `count` requests whose base div B sums to `quotients`, and base mod B is counted in `phases`.
fn total(tick: i64, block_size: i64, count: i64, quotients: i64, phases: &[i64]) -> i64 {
    let (quotient, phase) = (tick.div_euclid(block_size), tick.rem_euclid(block_size));
    count * quotient - quotients + phases[..phase as usize].iter().sum::<i64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brute_force(courses: &[Course], new: Course, capacity: i64, block_size: i64) -> bool {
        let first = new.base + i64::from(new.prompt);
        (first..=new.last).all(|tick| {
            let alive = courses.iter().chain([&new]).filter(|course| course.last >= tick);
            alive.map(|course| blocks_for(course.tokens(tick), block_size)).sum::<i64>() <= capacity
        })
    }

    #[test]
    fn groups_are_charged_the_most_that_so_many_tokens_take() {
        use crate::memory::{GroupKind, KvGroup};
        let window = KvGroup { kind: GroupKind::SlidingWindow { window: 4 }, block_size: None, count: 3 };
        let full = KvGroup { kind: GroupKind::Full, block_size: None, count: 1 };
        let layout = KvLayout::new(2, &[full, window], 2, 0);
        let mut profile = Profile::new(&layout);
        let course = Course { last: 20, base: -4, prompt: 4 };
        profile.insert(course);
        // 24 tokens of the one, 20 of the other: 12 + 10 blocks, and four of each window.
        let other = Course { last: 20, base: 0, prompt: 2 };
        assert_eq!(profile.check(other, 12 + 10 + 2 * 3 * 4), Ok(()));
        assert_eq!(profile.check(other, 45), Err(Overflow { blocks: 46, ticks: 1 }));
        profile.remove(course);
        assert_eq!(profile.check(other, 22), Ok(()));
    }

    proptest! {
        #[test]
        fn check_agrees_with_every_tick_counted(
            present in proptest::collection::vec((1_i64..40, 1_u32..30), 0..8),
            (decodes, prompt) in (0_i64..40, 1_u32..30),
            block_size in 1_u32..6,
            capacity in 1_i64..60,
            now in -20_i64..20,
        ) {
            let course = |now: i64, decodes: i64, prompt: u32| {
                Course { last: now + 1 + decodes, base: now + 1 - i64::from(prompt), prompt }
            };
            let mut profile = Profile::new(&KvLayout::new(block_size, &[], 64, 0));
            let mut courses = Vec::new();
            for (decodes, prompt) in present {
                let old = course(now - 1, decodes, prompt);
                courses.push(old);
                profile.insert(old);
            }
            let size = i64::from(block_size);
            let fits = |now| brute_force(&courses, course(now, decodes, prompt), capacity, size);
            let checked = profile.check(course(now, decodes, prompt), capacity);
            prop_assert_eq!(checked.is_ok(), fits(now));
            if let Err(overflow) = checked {
                prop_assert!(overflow.blocks > capacity);
                // No time is skipped at which it would have fitted.
                prop_assert!((1..overflow.ticks).all(|delay| !fits(now + delay)));
            }
            for old in courses {
                profile.remove(old);
            }
            prop_assert_eq!((profile.members, profile.releases.len()), (0, 0));
        }
    }
}

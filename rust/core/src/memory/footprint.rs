//! What a request takes of the KV cache, as a function of its tokens.
//!
//! The layers of a model are cached in groups that draw blocks from one pool. A full group keeps every token; a sliding
//! window keeps the last W; chunked-local attention keeps the chunk under way; a state (Mamba, linear attention) is as
//! large at any length. Summed over the groups, and measured in tokens of the first one:
//!
//! ```text
//! B(n) = a·n + Σ_g (a_g·n below w_g tokens, p_g from there on) + c,    a_g = layers groups · b_0 / b_g
//! ```
//!
//! This is the mean over where in its blocks a request stands, which is what a forecast needs; the blocks that it holds
//! at this moment are counted exactly elsewhere.

/// A group whose part stops growing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plateau {
    /// Tokens of the first group for each token, while it grows.
    pub(crate) slope: f64,
    /// KV tokens of the request from which on it no longer grows.
    pub(crate) window: u32,
    /// What it takes from there on, tokens of the first group.
    pub(crate) level: f64,
    /// Most that it takes at any time.
    pub(crate) peak: f64,
}

/// What a request takes of the KV cache, in tokens of the first KV group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Footprint {
    slope: f64,
    /// Ascending by window.
    plateaus: Vec<Plateau>,
    /// What is taken at any length.
    constant: f64,
    /// Part of the last blocks that holds no token yet, on average.
    unfilled: f64,
}

impl Footprint {
    /// One full group with blocks of `block_size` tokens: a token for each token, and half of the last block.
    pub(crate) fn full(block_size: u32) -> Self {
        Self::default().with_full(1.0, block_size)
    }

    /// Adds full attention: `weight` groups, each in tokens of the first, with blocks of `block_size` tokens.
    pub(crate) fn with_full(mut self, weight: f64, block_size: u32) -> Self {
        self.slope += weight;
        self.unfilled += weight * half_block(block_size);
        self
    }

    /// Adds sliding windows. A block is freed once all of it has left the window, so that half a block more is held.
    pub(crate) fn with_window(mut self, weight: f64, window: u32, block_size: u32) -> Self {
        let window = window + block_size / 2;
        self.push(weight, window, 1.0);
        self.unfilled += weight * half_block(block_size);
        self
    }

    /// Adds chunked-local attention: it grows up to the end of the first chunk, and on average holds half of one after.
    pub(crate) fn with_chunk(mut self, weight: f64, chunk: u32, block_size: u32) -> Self {
        self.push(weight, chunk, 0.5);
        self.unfilled += weight * half_block(block_size);
        self
    }

    /// Adds states of this many tokens of the first group in all.
    pub(crate) fn with_state(mut self, tokens: f64) -> Self {
        self.constant += tokens;
        self
    }

    /// Adds a group that grows up to its window, and then holds a part of it.
    fn push(&mut self, slope: f64, window: u32, part: f64) {
        let peak = slope * f64::from(window);
        let at = self.plateaus.partition_point(|other| other.window <= window);
        self.plateaus.insert(at, Plateau { slope, window, level: part * peak, peak });
    }

    /// Tokens of the first group for each token that nothing frees.
    pub(crate) fn slope(&self) -> f64 {
        self.slope
    }

    /// The groups that stop growing, ascending by window.
    pub(crate) fn plateaus(&self) -> &[Plateau] {
        &self.plateaus
    }

    /// What is taken at any length, the unfilled part of the last blocks included.
    pub(crate) fn fixed(&self) -> f64 {
        self.constant + self.unfilled
    }

    /// The most that one more token can add.
    pub(crate) fn steepest(&self) -> f64 {
        self.slope + self.plateaus.iter().map(|group| group.slope).sum::<f64>()
    }

    /// Slope and offset of a line that what n tokens take does not exceed, on average over its place in its blocks.
    pub(crate) fn line_above(&self) -> (f64, f64) {
        (self.slope, self.fixed() + self.plateaus.iter().map(|group| group.peak).sum::<f64>())
    }

    /// What a whole block in each group takes beside the tokens in it, and the states: no request takes more than this
    /// and `steepest` for each of its tokens.
    pub(crate) fn most_beside(&self) -> f64 {
        self.constant + 2.0 * self.unfilled + self.steepest()
    }

    /// What `n` tokens take, unfilled blocks aside.
    pub(crate) fn tokens(&self, n: f64) -> f64 {
        self.slope * n + self.plateaus.iter().map(|group| group.at(n)).sum::<f64>() + self.constant
    }

    /// The most that a request takes at any time until it has `n` tokens, on average over its place in its blocks.
    pub(crate) fn most(&self, n: f64) -> f64 {
        self.slope * n + self.plateaus.iter().map(|group| group.most(n)).sum::<f64>() + self.fixed()
    }
}

impl Plateau {
    /// Its part at `n` tokens.
    pub(crate) fn at(&self, n: f64) -> f64 {
        if n < f64::from(self.window) { self.slope * n } else { self.level }
    }

    /// Most that it takes until there are `n` tokens.
    pub(crate) fn most(&self, n: f64) -> f64 {
        if n < f64::from(self.window) { self.slope * n } else { self.peak }
    }
}

/// The part of its last block that a request does not fill, on average.
fn half_block(block_size: u32) -> f64 {
    0.5 * f64::from(block_size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean of the blocks that a group holds at `n` tokens, over the block sizes' phases, times the block size.
    fn blocks(n: i64, block: i64, freed: impl Fn(i64) -> i64) -> f64 {
        let at = |n: i64| (n + block - 1).div_euclid(block) - freed(n - 1).max(0).div_euclid(block);
        (0..block).map(|phase| (at(n + phase) * block) as f64).sum::<f64>() / block as f64
    }

    #[test]
    fn a_full_group_takes_its_tokens_and_half_a_block() {
        let footprint = Footprint::full(16);
        assert_eq!((footprint.tokens(100.0), footprint.fixed(), footprint.most(100.0)), (100.0, 7.5, 107.5));
        assert_eq!((footprint.steepest(), footprint.most_beside()), (1.0, 16.0));
    }

    #[test]
    fn windows_chunks_and_states_take_what_their_blocks_do_on_average() {
        let (window, chunk, block) = (128, 256, 16);
        let windows = Footprint::default().with_window(1.0, 128, 16);
        let chunks = Footprint::default().with_chunk(1.0, 256, 16);
        let takes = |footprint: &Footprint, n: i64| footprint.tokens(n as f64 + 7.5) + footprint.fixed();
        for n in [1_i64, 40, 100, 200, 500, 3_000] {
            let held = blocks(n, block, |p| p - window + 1);
            assert!((takes(&windows, n) - held).abs() <= 8.5, "{n}: {} for {held}", takes(&windows, n));
        }
        let held = |n: i64| blocks(n, block, |p| p.div_euclid(chunk) * chunk);
        assert!((takes(&chunks, 200) - held(200)).abs() <= 8.5);
        let later = (1_024..1_024 + chunk).map(held).sum::<f64>() / chunk as f64;
        assert!((takes(&chunks, 1_100) - later).abs() <= 8.5, "{later}");
        assert!((chunks.most(1e4) - 256.0 - 7.5).abs() < 1e-9, "the end of a chunk");
        assert!((Footprint::default().with_state(48.0).most(1e6) - 48.0).abs() < 1e-9);
    }

    #[test]
    fn groups_stand_in_the_order_of_their_windows() {
        let footprint = Footprint::full(16).with_window(5.0, 1024, 16).with_window(1.0, 128, 32);
        assert_eq!(footprint.plateaus().iter().map(|group| group.window).collect::<Vec<_>>(), [144, 1032]);
        assert!((footprint.tokens(1e4) - (1e4 + 5.0 * 1032.0 + 144.0)).abs() < 1e-9);
        assert!((footprint.steepest() - 7.0).abs() < 1e-9);
    }
}

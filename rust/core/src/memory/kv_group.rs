//! The kinds of KV cache that a model's layers have, and how many blocks each needs.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the layers of a group keep of a request's context.
///
/// ```
/// use wait_core::{Config, GroupKind, KvGroup, Scheduler};
///
/// // Blocks of 16 tokens that a request of 1,000 tokens holds, by the kind of its only group.
/// let blocks = |kind| {
///     let kv_groups = vec![KvGroup { kind, block_size: None, count: 1 }];
///     let scheduler = Scheduler::new(&Config { kv_blocks: 1000, kv_groups, ..Config::default() })?;
///     Ok::<u32, wait_core::Error>(scheduler.view().layout().decoding(1000))
/// };
/// assert_eq!(blocks(GroupKind::Full)?, 63);
/// assert_eq!(blocks(GroupKind::SlidingWindow { window: 128 })?, 9);
/// assert_eq!(blocks(GroupKind::ChunkedLocal { chunk: 256 })?, 15);
/// assert_eq!(blocks(GroupKind::State { blocks: 4, aligned: false })?, 4);
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// All of it: full attention, MLA.
    Full,
    /// The last `window` tokens.
    SlidingWindow {
        /// Tokens that a token attends to, itself included.
        window: u32,
    },
    /// The tokens since the last multiple of `chunk`.
    ChunkedLocal {
        /// Tokens of a chunk, a multiple of the group's block size.
        chunk: u32,
    },
    /// A state of constant size: Mamba, linear attention.
    State {
        /// Blocks of it.
        blocks: u32,
        /// A step that enters a new block keeps the state at the end of the last one, until the next step (vLLM's Mamba cache
        /// mode `align`).
        aligned: bool,
    },
}

impl GroupKind {
    /// As settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::SlidingWindow { .. } => "sliding_window",
            Self::ChunkedLocal { .. } => "chunked_local",
            Self::State { .. } => "state",
        }
    }
}

/// Layers that keep their KV in the same way. Each of `count` such groups takes blocks of its own from the one pool.
///
/// As a setting: `{"kind": "sliding_window", "window": 1024, "block_size": 16, "count": 5}`, or of kind `full`, `chunked_local`
/// (with `chunk`) or `state` (with `blocks`, and `aligned` if states at block boundaries are kept); `block_size` is that of the scheduler unless given, and `count` 1.
///
/// Five layers with a sliding window for each one with full attention, as Gemma 3 has them:
///
/// ```
/// use wait_core::{Config, GroupKind, KvGroup, Scheduler};
///
/// let kv_groups = vec![
///     KvGroup { kind: GroupKind::Full, block_size: None, count: 1 },
///     KvGroup { kind: GroupKind::SlidingWindow { window: 1024 }, block_size: None, count: 5 },
/// ];
/// let scheduler = Scheduler::new(&Config { kv_blocks: 10_000, kv_groups, ..Config::default() })?;
/// let layout = scheduler.view().layout();
/// // A request that has decoded up to 16,000 tokens: all of them in one group, the last 1,024 in each of five.
/// assert_eq!(layout.decoding(16_000), 1000 + 5 * 64);
///
/// // As in a settings file.
/// let group: KvGroup = serde_json::from_str(r#"{"kind": "sliding_window", "window": 1024, "count": 5}"#).unwrap();
/// assert_eq!((group.kind, group.count), (GroupKind::SlidingWindow { window: 1024 }, 5));
/// # Ok::<(), wait_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawGroup", into = "RawGroup")]
pub struct KvGroup {
    /// What is kept.
    pub kind: GroupKind,
    /// Tokens per block; absent: the scheduler's.
    pub block_size: Option<u32>,
    /// How many groups of this kind there are.
    pub count: u32,
}

/// A group as it is serialised.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunk: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aligned: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block_size: Option<u32>,
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

impl TryFrom<RawGroup> for KvGroup {
    type Error = Error;

    fn try_from(raw: RawGroup) -> Result<Self> {
        let RawGroup { kind, window, chunk, blocks, aligned, block_size, count } = raw;
        let parsed = match (kind.as_str(), window, chunk, blocks, aligned) {
            ("full", None, None, None, None) => GroupKind::Full,
            ("sliding_window", Some(window), None, None, None) => GroupKind::SlidingWindow { window },
            ("chunked_local", None, Some(chunk), None, None) => GroupKind::ChunkedLocal { chunk },
            ("state", None, None, Some(blocks), aligned) => {
                GroupKind::State { blocks, aligned: aligned.unwrap_or(false) }
            }
            _ => {
                let rule = "is \"full\", \"sliding_window\" with window, \"chunked_local\" with chunk, or \"state\" with blocks, \
                            and nothing beside";
                return Err(Error::invalid("kind", kind, rule));
            }
        };
        Ok(Self { kind: parsed, block_size, count })
    }
}

impl From<KvGroup> for RawGroup {
    fn from(group: KvGroup) -> Self {
        let KvGroup { kind, block_size, count } = group;
        let raw = Self {
            kind: kind.name().to_owned(),
            window: None,
            chunk: None,
            blocks: None,
            aligned: None,
            block_size,
            count,
        };
        match kind {
            GroupKind::Full => raw,
            GroupKind::SlidingWindow { window } => Self { window: Some(window), ..raw },
            GroupKind::ChunkedLocal { chunk } => Self { chunk: Some(chunk), ..raw },
            GroupKind::State { blocks, aligned } => {
                Self { blocks: Some(blocks), aligned: aligned.then_some(true), ..raw }
            }
        }
    }
}

/// Largest window, chunk or block, tokens: a lane keeps a counter for each token of one.
pub(crate) const MAX_WINDOW: u32 = 1 << 20;
/// Most groups, `count` of each kind summed, and most blocks of a state.
const MAX_GROUPS: u32 = 1024;

impl KvGroup {
    /// Checks groups of a scheduler with blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the group and the value that is refused.
    pub(crate) fn validate(groups: &[Self], block_size: u32) -> Result<()> {
        let refuse = |i: usize, what: &str, value: u32, rule: String| {
            Err(Error::invalid(format!("kv_groups[{i}].{what}"), value, rule))
        };
        let range = |most: u32| format!("must be between 1 and {most}");
        let mut total = 0_u32;
        for (i, group) in groups.iter().enumerate() {
            total = total.saturating_add(group.count);
            if group.count == 0 || total > MAX_GROUPS {
                return refuse(i, "count", group.count, format!("{} for all groups together", range(MAX_GROUPS)));
            }
            let size = group.block_size.unwrap_or(block_size);
            if !(1..=MAX_WINDOW).contains(&size) {
                return refuse(i, "block_size", size, range(MAX_WINDOW));
            }
            match group.kind {
                GroupKind::SlidingWindow { window } if !(1..=MAX_WINDOW).contains(&window) => {
                    return refuse(i, "window", window, range(MAX_WINDOW));
                }
                GroupKind::ChunkedLocal { chunk } if !(1..=MAX_WINDOW).contains(&chunk) || chunk % size != 0 => {
                    let rule = format!("{}, and a multiple of the block size {size}", range(MAX_WINDOW));
                    return refuse(i, "chunk", chunk, rule);
                }
                GroupKind::State { blocks, .. } if !(1..=MAX_GROUPS).contains(&blocks) => {
                    return refuse(i, "blocks", blocks, range(MAX_GROUPS));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that groups, which are valid, can be cached by the hashes of blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the group and why it is not cached.
    pub(crate) fn validate_cached(groups: &[Self], block_size: u32) -> Result<()> {
        let size = |group: &Self| group.block_size.unwrap_or(block_size);
        let has_full = groups.iter().any(|group| group.kind == GroupKind::Full);
        let mut multiple = 1_u64;
        for (i, group) in groups.iter().enumerate() {
            let refuse = |what: &str, value: String, rule: &str| {
                Err(Error::invalid(format!("kv_groups[{i}].{what}"), value, format!("with prefix_caching {rule}")))
            };
            if !size(group).is_multiple_of(block_size) {
                return refuse(
                    "block_size",
                    size(group).to_string(),
                    "must be a multiple of block_size, by which it is hashed",
                );
            }
            multiple = common_multiple(multiple, size(group).into());
            if multiple > MAX_WINDOW.into() {
                let rule = "must have a smaller common multiple with the others: what is found is a multiple of it";
                return refuse("block_size", size(group).to_string(), rule);
            }
            match group.kind {
                GroupKind::State { aligned: false, .. } => {
                    let rule = "must be true: as in vLLM, a state that is not kept at block boundaries is not cached";
                    return refuse("aligned", "false".to_owned(), rule);
                }
                GroupKind::ChunkedLocal { .. }
                    if !has_full || groups.iter().any(|other| size(other) != size(group)) =>
                {
                    let rule = "needs a full group, and blocks of one size in all groups, as in vLLM";
                    return refuse("kind", "chunked_local".to_owned(), rule);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The least number that both divide.
pub(super) fn common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

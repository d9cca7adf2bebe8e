//! What a request costs in the KV cache, and how much of the cache is free. Absent: which request holds what (state/).

mod block_counters;
mod block_pool;
mod cached_groups;
mod footprint;
mod kv_group;
mod kv_layout;
mod lane;
mod prefix_cache;

pub use block_pool::BlockPool;
pub(crate) use cached_groups::CachedGroups;
pub(crate) use footprint::Footprint;
pub use kv_group::{GroupKind, KvGroup};
pub use kv_layout::KvLayout;
pub use lane::Lane;
pub(crate) use prefix_cache::{Block, Hit as CachedBlocks, PrefixCache};

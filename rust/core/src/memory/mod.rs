//! What a request costs in the KV cache, and what the cache has left. Absent: which request holds what (state/).

mod block_pool;
mod lane;
mod prefix_cache;

pub use block_pool::BlockPool;
pub use lane::Lane;
// Nothing outside its own tests uses the prefix cache until the scheduler keeps one.
#[allow(unused_imports)]
pub(crate) use prefix_cache::{Block, Hit, PrefixCache};

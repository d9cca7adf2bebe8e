//! What a request costs in the KV cache, and what the cache has left. Absent: which request holds what (state/).

mod block_pool;
mod footprint;
mod lane;

pub use block_pool::BlockPool;
pub(crate) use footprint::Footprint;
pub use lane::Lane;

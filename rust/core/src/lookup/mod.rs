//! Tables of what hosts name by 64 bits of any pattern: requests, blocks of a prefix, replicas. Absent: what is looked up.

pub(crate) mod hash;
pub(crate) mod index;

pub(crate) use hash::{BuildIdHasher, mixed};
pub(crate) use index::{Index, Place};

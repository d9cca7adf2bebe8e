//! A column of numbers that engines on several threads write, each in the rows of its own requests.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A number in a cell that may be written through a shared reference. It orders nothing: the threads of a fleet meet in
/// between, and a row is one engine's until then.
pub(crate) trait Cell: Copy {
    type Shared: std::fmt::Debug;

    fn shared(self) -> Self::Shared;
    fn get(cell: &Self::Shared) -> Self;
    fn set(cell: &Self::Shared, value: Self);
    fn into_inner(cell: Self::Shared) -> Self;
}

macro_rules! cell {
    ($number:ty, $shared:ty) => {
        impl Cell for $number {
            type Shared = $shared;

            fn shared(self) -> $shared {
                <$shared>::new(self)
            }

            #[inline]
            fn get(cell: &$shared) -> Self {
                cell.load(Ordering::Relaxed)
            }

            #[inline]
            fn set(cell: &$shared, value: Self) {
                cell.store(value, Ordering::Relaxed);
            }

            fn into_inner(cell: $shared) -> Self {
                cell.into_inner()
            }
        }
    };
}

cell!(u16, AtomicU16);
cell!(u32, AtomicU32);
cell!(u64, AtomicU64);

/// One number for each request.
#[derive(Debug)]
pub(crate) struct Column<T: Cell>(Vec<T::Shared>);

impl<T: Cell> Column<T> {
    pub(crate) fn new(value: T, rows: usize) -> Self {
        Self((0..rows).map(|_| value.shared()).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) fn get(&self, row: usize) -> T {
        T::get(&self.0[row])
    }

    #[inline]
    pub(crate) fn set(&self, row: usize, value: T) {
        T::set(&self.0[row], value);
    }

    /// In the same memory.
    pub(crate) fn into_vec(self) -> Vec<T> {
        self.0.into_iter().map(T::into_inner).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.iter().map(T::get)
    }
}

impl Column<u32> {
    /// Counts one more.
    #[inline]
    pub(crate) fn count(&self, row: usize) {
        self.set(row, self.get(row) + 1);
    }
}

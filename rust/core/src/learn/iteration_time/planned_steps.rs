//! The iterations that were planned and whose time is not reported yet.

use crate::model::BatchShape;

/// Most iterations under way: an asynchronous engine has two, a pipeline one a stage.
const MOST: usize = 16;

/// A ring of them: the next may be planned before this one has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlannedSteps {
    /// (number of the plan, what it computes; none if the host did otherwise).
    ring: [(u64, Option<BatchShape>); MOST],
    first: usize,
    len: usize,
}

impl PlannedSteps {
    /// Records a planned iteration; if there are too many, the oldest is dropped.
    pub(crate) fn push(&mut self, iteration: u64, shape: &BatchShape) {
        if self.len == MOST {
            self.pop();
        }
        self.ring[(self.first + self.len) % MOST] = (iteration, Some(*shape));
        self.len += 1;
    }

    /// The host did something other than the last plan.
    pub(crate) fn void_last(&mut self) {
        if self.len > 0 {
            self.ring[(self.first + self.len - 1) % MOST].1 = None;
        }
    }

    /// The iteration has ended, the oldest if none is named; returns what it computed. Those before it will not be
    /// reported.
    pub(crate) fn take(&mut self, iteration: Option<u64>) -> Option<BatchShape> {
        while let Some((number, shape)) = self.pop() {
            match iteration {
                Some(wanted) if number < wanted => {}
                Some(wanted) if number > wanted => {
                    // It was reported before, or computed nothing.
                    self.first = (self.first + MOST - 1) % MOST;
                    self.len += 1;
                    return None;
                }
                _ => return shape,
            }
        }
        None
    }

    fn pop(&mut self) -> Option<(u64, Option<BatchShape>)> {
        if self.len == 0 {
            return None;
        }
        let oldest = self.ring[self.first];
        self.first = (self.first + 1) % MOST;
        self.len -= 1;
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(decodes: u64) -> BatchShape {
        BatchShape { decodes, ..BatchShape::default() }
    }

    #[test]
    fn times_are_paired_with_the_oldest_or_with_the_one_that_is_named() {
        let mut steps = PlannedSteps::default();
        (1..=4).for_each(|n| steps.push(n, &shape(n)));
        assert_eq!(steps.take(None), Some(shape(1)));
        // The second was never reported; it does not shift the others.
        assert_eq!(steps.take(Some(3)), Some(shape(3)));
        assert_eq!(steps.take(Some(3)), None, "reported twice");
        assert_eq!(steps.take(Some(2)), None, "too late");
        assert_eq!(steps.take(Some(4)), Some(shape(4)));
        assert_eq!(steps.take(None), None);
        assert_eq!(steps.take(Some(9)), None);
    }

    #[test]
    fn what_the_host_did_otherwise_has_no_shape_and_a_host_that_never_reports_costs_nothing() {
        let mut steps = PlannedSteps::default();
        steps.void_last();
        steps.push(1, &shape(1));
        steps.push(2, &shape(2));
        steps.void_last();
        assert_eq!(steps.take(None), Some(shape(1)));
        assert_eq!(steps.take(None), None);
        (3..1000).for_each(|n| steps.push(n, &shape(n)));
        assert_eq!(steps.take(None), Some(shape(1000 - MOST as u64)));
        assert_eq!(steps.take(Some(999)), Some(shape(999)));
        assert_eq!(steps.take(None), None);
    }
}

//! Types from a measured list of lengths: quantile classes of the output length.

use serde::{Deserialize, Serialize};

use super::{RequestType, Workload, check_lengths};
use crate::error::{Error, invalid, non_negative};

/// Which output length represents a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Representative {
    /// The class mean, rounded half up: nearly unbiased for throughput and memory, but members longer than it exist.
    #[default]
    Mean,
    /// The class maximum: no member outlives its type, at the price of overstated memory.
    Upper,
}

/// Classes of output length and the workload of their representatives; class i is type i.
///
/// The list is cut where the sorted output lengths pass each quantile i/`classes`; equal outputs stay together, so
/// there may be fewer classes than asked for. A class's prompt is the mean prompt of its members, rounded half up; its
/// rate is the total rate times its share of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grouping {
    workload: Workload,
    upper: Vec<u32>,
}

impl Grouping {
    /// Groups a list of (prompt, output) lengths that arrive at `rate` requests per second in total into at most
    /// `classes` classes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the list is empty, `classes` is 0, or a length or the rate is out of range.
    pub fn by_output_quantiles(
        lengths: &[(u32, u32)],
        rate: f64,
        classes: usize,
        representative: Representative,
    ) -> Result<Self, Error> {
        non_negative("rate", rate)?;
        if lengths.is_empty() {
            return Err(invalid("lengths", &"[]", "at least one pair"));
        }
        if classes == 0 {
            return Err(invalid("classes", &classes, "at least 1"));
        }
        for (i, &(prompt, output)) in lengths.iter().enumerate() {
            check_lengths("lengths", i, prompt, output)?;
        }
        let mut sorted: Vec<(u32, u32)> = lengths.iter().map(|&(prompt, output)| (output, prompt)).collect();
        sorted.sort_unstable();
        let count = sorted.len();
        let classes = classes.min(count);
        let mut upper: Vec<u32> = (1..=classes).map(|i| sorted[(i * count).div_ceil(classes) - 1].0).collect();
        upper.dedup();
        let mut rest = sorted.as_slice();
        let mut types = Vec::with_capacity(upper.len());
        for &bound in &upper {
            let (class, later) = rest.split_at(rest.partition_point(|&(output, _)| output <= bound));
            let mean = |values: &mut dyn Iterator<Item = u32>| {
                let size = class.len() as u64;
                ((2 * values.map(u64::from).sum::<u64>() + size) / (2 * size)) as u32
            };
            let output = match representative {
                Representative::Mean => mean(&mut class.iter().map(|&(output, _)| output)),
                Representative::Upper => bound,
            };
            types.push(RequestType {
                prompt: mean(&mut class.iter().map(|&(_, prompt)| prompt)),
                output,
                rate: rate * class.len() as f64 / count as f64,
            });
            rest = later;
        }
        Ok(Self { workload: Workload::new(types)?, upper })
    }

    /// Types for a list of (prompt, output) lengths, and the type of each: the distinct pairs themselves where there are
    /// at most `classes` of them, quantile classes of the output length otherwise.
    ///
    /// # Errors
    /// As [`Grouping::by_output_quantiles`], and for more classes than a type id can tell apart.
    pub fn typed(lengths: &[(u32, u32)], rate: f64, classes: usize) -> Result<(Workload, Vec<u16>), Error> {
        if classes > usize::from(u16::MAX) {
            return Err(invalid("classes", &classes, "at most 65,535"));
        }
        let exact = Workload::from_lengths(lengths, rate)?;
        if exact.types().len() <= classes {
            let pairs: Vec<(u32, u32)> = exact.types().iter().map(|t| (t.output, t.prompt)).collect();
            let label = |&(prompt, output): &(u32, u32)| pairs.partition_point(|&pair| pair < (output, prompt)) as u16;
            let labels = lengths.iter().map(label).collect();
            return Ok((exact, labels));
        }
        let grouping = Self::by_output_quantiles(lengths, rate, classes, Representative::Mean)?;
        let labels = lengths.iter().map(|&(_, output)| grouping.classify(output) as u16).collect();
        Ok((grouping.workload, labels))
    }

    /// The workload of the representatives, in ascending order of output length.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Largest output length of each class, ascending: the boundaries l'_1 < … of coarse segments.
    pub fn upper(&self) -> &[u32] {
        &self.upper
    }

    /// The class of a request with this output length; the last class beyond the longest seen.
    pub fn classify(&self, output: u32) -> usize {
        self.upper.partition_point(|&bound| bound < output).min(self.upper.len() - 1)
    }
}

//! The requests offered to a simulation, from columns.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use wait_core::LengthHint;
use wait_sim::{Arrival, Follow, Hint, Transfer};

use crate::error::WaitCoreError;
use crate::simulation::same_length;

/// The hints of each request, from columns that may be absent.
pub(crate) fn hints(
    requests: usize,
    predicted: Option<&[u32]>,
    log_error: f32,
    classes: Option<&[u16]>,
    priorities: Option<&[i32]>,
    tenants: Option<&[u16]>,
) -> PyResult<Vec<Hint>> {
    let sizes = [predicted.map(<[u32]>::len), classes.map(<[u16]>::len), priorities.map(<[i32]>::len)];
    let sizes = sizes.into_iter().chain([tenants.map(<[u16]>::len)]);
    if let Some(size) = sizes.clone().flatten().find(|&size| size != requests) {
        return Err(WaitCoreError::new_err(format!("hints: {size} values for {requests} requests")));
    }
    if sizes.flatten().next().is_none() {
        return Ok(Vec::new());
    }
    let hint = |i: usize| Hint {
        output: predicted.map_or(LengthHint::Unknown, |tokens| LengthHint::Predicted { tokens: tokens[i], log_error }),
        label: classes.map(|labels| labels[i]),
        priority: priorities.map_or(0, |levels| levels[i]),
        tenant: tenants.map_or(0, |tenants| tenants[i]),
    };
    Ok((0..requests).map(hint).collect())
}

/// The requests, from columns; without labels all have label 0.
pub(crate) fn arrivals(
    at_ns: &PyReadonlyArray1<'_, u64>,
    prompt: &PyReadonlyArray1<'_, u32>,
    output: &PyReadonlyArray1<'_, u32>,
    labels: Option<&PyReadonlyArray1<'_, u16>>,
) -> PyResult<Vec<Arrival>> {
    let (prompt, output) = same_length(prompt, output)?;
    let (times, n) = (at_ns.as_slice()?, prompt.len());
    let labels = labels.map(|labels| labels.as_slice()).transpose()?;
    let labelled = labels.map_or(n, <[u16]>::len);
    if times.len() != n || labelled != n {
        let message = format!("arrivals: {} times and {labelled} labels for {n} requests", times.len());
        return Err(WaitCoreError::new_err(message));
    }
    let unlabelled = std::iter::repeat_n(&0, if labels.is_none() { n } else { 0 });
    let rows = times.iter().zip(prompt).zip(output).zip(labels.unwrap_or_default().iter().chain(unlabelled));
    let arrival = |(((&at_ns, &prompt), &output), &label)| Arrival { at_ns, prompt, output, label };
    Ok(rows.map(arrival).collect())
}

/// Which request each follows; -1 for none.
pub(crate) fn followed(after: &[i64], think_ns: &[u64]) -> PyResult<Vec<Option<Follow>>> {
    if after.len() != think_ns.len() {
        let message = format!("think_ns: {} times for {} requests", think_ns.len(), after.len());
        return Err(WaitCoreError::new_err(message));
    }
    let follow = |(i, (&after, &think_ns)): (usize, (&i64, &u64))| match u32::try_from(after) {
        Ok(after) => Ok(Some(Follow { after, think_ns })),
        Err(_) if after == -1 => Ok(None),
        Err(_) => Err(WaitCoreError::new_err(format!("after[{i}] = {after}: the index of a request, or -1 for none"))),
    };
    after.iter().zip(think_ns).enumerate().map(follow).collect()
}

pub(crate) fn transfer((bytes_per_token, bandwidth, latency_s): (f64, f64, f64)) -> Transfer {
    Transfer { bytes_per_token, bandwidth, latency_s }
}

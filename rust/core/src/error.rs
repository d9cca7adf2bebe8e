//! Everything that can be refused, with the argument and the value that was refused.

use crate::request::RequestId;

/// An input the core refuses. Nothing has changed when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A value outside its range.
    #[error("{name} = {value}: {rule}")]
    Invalid {
        /// The argument.
        name: String,
        /// What was given.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// A key that no setting has.
    #[error("unknown setting {key:?}{}", suggestion.as_ref().map(|s| format!("; did you mean {s:?}?")).unwrap_or_default())]
    UnknownKey {
        /// What was given.
        key: String,
        /// The nearest key that exists.
        suggestion: Option<String>,
    },
    /// A request that could not run even alone.
    #[error("request {id} needs {needs} KV tokens, more than the {limit} that {what}")]
    TooLarge {
        /// The request.
        id: RequestId,
        /// Tokens it needs at least.
        needs: u64,
        /// Tokens there are.
        limit: u64,
        /// What sets the limit.
        what: &'static str,
    },
    /// An id that is in use.
    #[error("request id {id} is in use")]
    DuplicateId {
        /// The id.
        id: RequestId,
    },
    /// The queue bound is reached: try later or elsewhere.
    #[error("queue full: {queued} {unit} wait already, the bound is {bound}; predicted wait {:.3} s", *predicted_wait_ns as f64 * 1e-9)]
    QueueFull {
        /// What waits.
        queued: u64,
        /// The bound.
        bound: u64,
        /// Requests or tokens.
        unit: &'static str,
        /// How long it would have waited, ns.
        predicted_wait_ns: u64,
    },
    /// It would wait longer than it may.
    #[error("request {id} would wait {:.3} s, longer than the {:.3} s it may", *predicted_wait_ns as f64 * 1e-9, *max_wait_ns as f64 * 1e-9)]
    DeadlineUnreachable {
        /// The request.
        id: RequestId,
        /// How long it would wait, ns.
        predicted_wait_ns: u64,
        /// How long it may, ns.
        max_wait_ns: u64,
    },
}

impl Error {
    /// A refused value.
    pub fn invalid(name: impl Into<String>, value: impl std::fmt::Display, rule: impl Into<String>) -> Self {
        Self::Invalid { name: name.into(), value: value.to_string(), rule: rule.into() }
    }
}

/// Result of the core's fallible calls.
pub type Result<T> = std::result::Result<T, Error>;

/// The one of `known` nearest to `key`, if it is near enough to be a slip of the pen.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + key.len() / 3;
    known.into_iter().map(|name| (edit_distance(key, name), name)).filter(|&(d, _)| d <= limit).min().map(|(_, n)| n)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

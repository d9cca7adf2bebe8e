//! Everything that can be refused, with the argument and the value that was refused.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

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
        id: u64,
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
        id: u64,
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
        id: u64,
        /// How long it would wait, ns.
        predicted_wait_ns: u64,
        /// How long it may, ns.
        max_wait_ns: u64,
    },
    /// The demand exceeds what the GPU serves with any batch, however large the memory (arXiv 2504.11320 §3, x ≥ 1).
    #[error(
        "unstable: the workload needs x = {load:.4} of the GPU's time (below 1 is stable); it is stable at {:.4} times \
         its rate or less",
        1.0 / load
    )]
    Unstable {
        /// x, the fraction of the GPU's time that the workload needs at the most efficient batch size.
        load: f64,
    },
    /// Some inequality of the feasible set fails.
    #[error("infeasible thresholds: {}", join(.violations))]
    Infeasible {
        /// The inequalities that fail, in the order in which they are checked.
        violations: Vec<Violation>,
    },
}

/// One inequality `left ≤ right` (or `<`) that fails.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Which inequality, in the paper's symbols.
    pub condition: String,
    /// Value of the smaller side.
    pub left: f64,
    /// Value of the larger side.
    pub right: f64,
    /// What would make it hold.
    pub remedy: String,
}

impl Violation {
    /// How far the inequality is from holding, in its own unit; at or above 0.
    pub fn excess(&self) -> f64 {
        self.left - self.right
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right, excess) = (self.left, self.right, self.excess());
        write!(f, "{} fails: {left:.6} against {right:.6}, off by {excess:.6}; {}", self.condition, self.remedy)
    }
}

fn join(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// A refused value.
    pub fn invalid(name: impl Into<String>, value: impl std::fmt::Display, rule: impl Into<String>) -> Self {
        Self::Invalid { name: name.into(), value: value.to_string(), rule: rule.into() }
    }
}

/// A planning argument outside the range in which the formulas mean anything.
pub(crate) fn invalid(argument: impl Into<String>, value: &impl ToString, requirement: &'static str) -> Error {
    Error::Invalid { name: argument.into(), value: value.to_string(), rule: format!("must be {requirement}") }
}

/// `value`, if it is finite and above 0.
pub(crate) fn positive(argument: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(invalid(argument, &value, "finite and above 0")) }
}

/// `value`, if it is finite and at least 0.
pub(crate) fn non_negative(argument: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(invalid(argument, &value, "finite and at least 0")) }
}

/// Result of the core's fallible calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Reads a value from JSON.
///
/// `name` is the argument that messages name; "" where `value` is an object whose keys are the arguments.
///
/// # Errors
/// [`Error::Invalid`] with the place of the first wrong value, as in `types[0].output`.
pub fn from_json<T: DeserializeOwned>(value: &Value, name: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
        let place = match (name, path.as_str()) {
            ("", _) => path,
            (_, ".") => name.to_owned(),
            (_, within) if within.starts_with('[') => format!("{name}{within}"),
            (_, within) => format!("{name}.{within}"),
        };
        let given = value.pointer(&pointer).unwrap_or(value).to_string();
        Error::invalid(place, given, in_plain_words(&error.into_inner().to_string()))
    })
}

/// An error of serde's without the names of Rust's types, and without the value, which the message shows already.
fn in_plain_words(message: &str) -> String {
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{} is missing", field.trim_matches('`'));
    }
    let Some((found, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    if !["invalid ", "unknown variant "].iter().any(|begin| found.starts_with(begin)) {
        return message.to_owned();
    }
    let expected = match expected {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer of at least 0",
        "i32" | "i64" => "an integer",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        of if of.starts_with("struct ") || of.starts_with("internally tagged enum ") => "an object",
        other => other,
    };
    format!("must be {}", expected.replace('`', ""))
}

/// The one of `known` nearest to `key`, if it is near enough to be a typo.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + key.len() / 3;
    known.into_iter().map(|name| (edit_distance(key, name), name)).filter(|&(d, _)| d <= limit).min().map(|(_, n)| n)
}

/// The Levenshtein distance, one row at a time.
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

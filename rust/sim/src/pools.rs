//! A pool that prefills and a pool that decodes: two engines in series, with a transfer of KV between them.

use std::ops::ControlFlow;

use wait_core::Error;

use crate::error::SimError;
use crate::record::{NEVER_NS, Run};
use crate::requests::{Arrival, Requests};
use crate::run::run;
use crate::setup::Setup;

/// The result of requests that one engine prefilled and another decoded. Columns are in the order of the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Pools {
    /// The engine that computes prompts: every request ends there with its first token.
    pub prefill: Run,
    /// The engine that computes all other tokens, with the columns as clients see them: the time a request was sent to
    /// the first engine, and its first token from there. A request of one token ends there, too.
    pub decode: Run,
}

/// Runs an open loop of requests through both. `decode.transfer` says how KV is transferred from one to the other; the
/// decoding engine receives the prompt and the first token, whose KV it computes itself. Outputs end at
/// `decode.max_tokens`.
///
/// # Errors
/// [`SimError`], as for `run`; clients that wait for answers (closed loops, `max_concurrency`) would need both engines
/// at the same time, and are refused, as is a `decode` without a transfer.
pub fn pools<'a>(prefill: &Setup, decode: &Setup, requests: impl Into<Requests<'a>>) -> Result<Pools, SimError> {
    let offered = requests.into();
    let refuse = |name: &str, given: String, rule: &str| Err(Error::invalid(name, given, rule).into());
    if offered.follows.iter().any(Option::is_some) {
        return refuse("follows", format!("{} requests", offered.follows.len()), "must be empty: pools run in series");
    }
    if let Some(most) = prefill.max_concurrency.or(decode.max_concurrency) {
        return refuse("max_concurrency", most.to_string(), "must be absent: pools run in series");
    }
    if decode.transfer.is_none() {
        return refuse("transfer", "none".into(), "must be given for the engine that decodes");
    }
    for (name, hints) in [("prefill.hints", &prefill.hints), ("decode.hints", &decode.hints)] {
        if !hints.is_empty() && hints.len() != offered.arrivals.len() {
            return refuse(name, hints.len().to_string(), "must be one for each request, or empty");
        }
    }
    let first = Setup { max_tokens: Some(1), ..prefill.clone() };
    let first = run(&first, offered, |_| ControlFlow::Continue(()))?;
    let whole = offered.ended(decode.max_tokens);
    let mut order: Vec<usize> =
        (0..whole.len()).filter(|&i| first.finished_ns[i] != NEVER_NS && whole[i].output > 1).collect();
    order.sort_by_key(|&i| first.finished_ns[i]);
    let handed = |&i: &usize| Arrival {
        at_ns: first.finished_ns[i],
        prompt: whole[i].prompt + 1,
        output: whole[i].output - 1,
        ..whole[i]
    };
    let arrivals: Vec<Arrival> = order.iter().map(handed).collect();
    let hints = if decode.hints.is_empty() { Vec::new() } else { order.iter().map(|&i| decode.hints[i]).collect() };
    let max_tokens = decode.max_tokens.map(|most| (most - 1).max(1));
    let second = Setup { max_tokens, hints, ..decode.clone() };
    let second = run(&second, &arrivals, |_| ControlFlow::Continue(()))?;
    let decode = as_clients_see_it(&offered, &whole, &first, second, &order);
    Ok(Pools { prefill: first, decode })
}

/// The run of the second engine, its rows placed as in `order`, with what the first engine did to each.
fn as_clients_see_it(offered: &Requests, whole: &[Arrival], first: &Run, second: Run, order: &[usize]) -> Run {
    let n = whole.len();
    let mut run = Run {
        arrival_ns: first.arrival_ns.clone(),
        predicted_wait_ns: vec![0; n],
        prompt: first.prompt.clone(),
        output: whole.iter().map(|arrival| arrival.output).collect(),
        admitted_ns: vec![NEVER_NS; n],
        first_token_ns: first.first_token_ns.clone(),
        finished_ns: vec![NEVER_NS; n],
        preemptions: vec![0; n],
        ..second
    };
    for (row, &i) in order.iter().enumerate() {
        run.predicted_wait_ns[i] = second.predicted_wait_ns[row];
        run.admitted_ns[i] = second.admitted_ns[row];
        run.finished_ns[i] = second.finished_ns[row];
        run.preemptions[i] = second.preemptions[row];
        if second.first_token_ns[row] != NEVER_NS {
            // To the client this is the second token.
            run.gaps.push((second.first_token_ns[row] - first.first_token_ns[i], 1));
        }
    }
    for i in (0..n).filter(|&i| whole[i].output == 1) {
        run.admitted_ns[i] = first.admitted_ns[i];
        run.finished_ns[i] = first.finished_ns[i];
    }
    let done = |&i: &usize| run.finished_ns[i] != NEVER_NS;
    run.completed = (0..n).filter(done).count();
    run.failed = n - run.completed;
    run.finished_by_length = (0..n).filter(done).filter(|&i| run.output[i] < offered.arrivals[i].output).count();
    run
}

//! What clients send: independent requests, and requests that follow others, as the turns of a conversation.
//!
//! An open loop is a slice of arrivals and nothing else. A closed loop has a second column beside it.

use std::borrow::Cow;

use wait_core::{Error, Result};

use crate::prefixes::Prefixes;

/// One request of a run. Its id is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it arrives, ns; for one that follows another, the earliest time at which it may.
    pub at_ns: u64,
    /// Prompt length, tokens.
    pub prompt: u32,
    /// True output length, tokens; whether a policy may know it is the run's choice.
    pub output: u32,
    /// Index of the component it was drawn from, or the label of a trace.
    pub label: u16,
}

/// How a request follows another one: its prompt is that one's prompt, its output, and at least one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The request it follows, of a lower index.
    pub after: u32,
    /// Time from the end of that request until this one is sent, ns.
    pub think_ns: u64,
}

/// What is offered to the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests<'a> {
    /// The requests, in ascending order of time.
    pub arrivals: &'a [Arrival],
    /// Which request each follows; empty where none follows any. One whose predecessor was refused is never sent, and fails too.
    pub follows: &'a [Option<Follow>],
    /// What is known of common prefixes.
    pub prefixes: Prefixes<'a>,
}

impl<'a> From<&'a [Arrival]> for Requests<'a> {
    fn from(arrivals: &'a [Arrival]) -> Self {
        Self { arrivals, ..Self::default() }
    }
}

impl<'a> From<&'a Vec<Arrival>> for Requests<'a> {
    fn from(arrivals: &'a Vec<Arrival>) -> Self {
        Self::from(arrivals.as_slice())
    }
}

impl<'a, const N: usize> From<&'a [Arrival; N]> for Requests<'a> {
    fn from(arrivals: &'a [Arrival; N]) -> Self {
        Self::from(arrivals.as_slice())
    }
}

/// The end of virtual time, 146 years: sums of times stay exact below it.
pub(crate) const LATEST_NS: u64 = 1 << 62;

impl<'a> Requests<'a> {
    /// Which request `id` follows.
    pub(crate) fn follow(&self, id: usize) -> Option<Follow> {
        self.follows.get(id).copied().flatten()
    }

    /// The lengths that arise where outputs end at `max_tokens`: outputs are cut, and with them the prompts that hold them.
    pub(crate) fn ended(&self, max_tokens: Option<u32>) -> Cow<'a, [Arrival]> {
        let Some(most) = max_tokens.filter(|&most| self.arrivals.iter().any(|arrival| arrival.output > most)) else {
            return Cow::Borrowed(self.arrivals);
        };
        let mut ended = self.arrivals.to_vec();
        for id in 0..ended.len() {
            if let Some(Follow { after, .. }) = self.follow(id) {
                let (offered, real) = (self.arrivals[after as usize], ended[after as usize]);
                ended[id].prompt -= (offered.prompt + offered.output) - (real.prompt + real.output);
            }
            ended[id].output = ended[id].output.min(most);
        }
        Cow::Owned(ended)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let arrivals = self.arrivals;
        if u32::try_from(arrivals.len()).is_err() {
            return Err(Error::invalid("arrivals", arrivals.len(), "at most 2^32 - 1 requests"));
        }
        let mut previous = 0;
        for (i, arrival) in arrivals.iter().enumerate() {
            for (name, length) in [("prompt", arrival.prompt), ("output", arrival.output)] {
                if length == 0 {
                    return Err(Error::invalid(format!("arrivals[{i}].{name}"), length, "must be at least 1 token"));
                }
            }
            if arrival.at_ns < previous || arrival.at_ns > LATEST_NS {
                let rule = format!("must be in ascending order of time, at most {LATEST_NS} ns");
                return Err(Error::invalid(format!("arrivals[{i}].at_ns"), arrival.at_ns, rule));
            }
            previous = arrival.at_ns;
        }
        self.check_follows()?;
        self.prefixes.check(self)
    }

    fn check_follows(&self) -> Result<()> {
        if !self.follows.is_empty() && self.follows.len() != self.arrivals.len() {
            let rule = format!("{} arrivals", self.arrivals.len());
            return Err(Error::invalid("follows", self.follows.len(), rule));
        }
        for (i, follow) in self.follows.iter().enumerate() {
            let Some(Follow { after, think_ns }) = *follow else { continue };
            if after as usize >= i {
                let rule = format!("must be below {i}: a request follows an earlier one");
                return Err(Error::invalid(format!("follows[{i}].after"), after, rule));
            }
            if think_ns > LATEST_NS {
                let rule = format!("must be at most {LATEST_NS} ns");
                return Err(Error::invalid(format!("follows[{i}].think_ns"), think_ns, rule));
            }
            let last = self.arrivals[after as usize];
            let (prompt, held) = (self.arrivals[i].prompt, u64::from(last.prompt) + u64::from(last.output));
            if u64::from(prompt) <= held {
                let rule =
                    format!("must be above {held}, the prompt and the output of request {after}, which it follows");
                return Err(Error::invalid(format!("arrivals[{i}].prompt"), prompt, rule));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(prompt: u32, output: u32) -> Arrival {
        Arrival { at_ns: 0, prompt, output, label: 0 }
    }

    #[test]
    fn outputs_end_at_max_tokens_and_later_prompts_hold_what_was_said() {
        let arrivals = [arrival(10, 5), arrival(20, 9), arrival(40, 2), arrival(17, 30)];
        let after = |after| Some(Follow { after, think_ns: 0 });
        let follows = [None, after(0), after(1), after(0)];
        let requests = Requests { arrivals: &arrivals, follows: &follows, ..Requests::default() };
        assert_eq!(requests.check(), Ok(()));
        let lengths = |most| requests.ended(most).iter().map(|a| (a.prompt, a.output)).collect::<Vec<_>>();
        assert_eq!(lengths(Some(30)), [(10, 5), (20, 9), (40, 2), (17, 30)]);
        assert!(
            matches!(requests.ended(Some(30)), Cow::Borrowed(_)) && matches!(requests.ended(None), Cow::Borrowed(_))
        );
        // 1 token is missing of the first output and 5 of the second; new tokens are as many as before.
        assert_eq!(lengths(Some(4)), [(10, 4), (19, 4), (34, 2), (16, 4)]);
    }

    #[test]
    fn bad_followers_are_refused_by_name() {
        let arrivals = [arrival(10, 5), arrival(16, 1)];
        let refused = |follows: &[Option<Follow>], prompt| {
            let arrivals = [arrivals[0], arrival(prompt, 1)];
            Requests { arrivals: &arrivals, follows, ..Requests::default() }.check().unwrap_err().to_string()
        };
        let after = |after, think_ns| [None, Some(Follow { after, think_ns })];
        assert_eq!(refused(&[None], 16), "follows = 1: 2 arrivals");
        assert!(refused(&after(1, 0), 16).starts_with("follows[1].after = 1: must be below 1"));
        assert!(refused(&after(0, u64::MAX), 16).starts_with("follows[1].think_ns = 18446744073709551615: "));
        assert!(refused(&after(0, 0), 15).starts_with("arrivals[1].prompt = 15: must be above 15"));
    }
}

"""The requests of a simulation: a named dataset sampled from a seed, or a trace replayed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from wait_core import _core
from wait_core.checked import checked
from wait_core.workload.datasets import Dataset, Gamma, Poisson, dataset
from wait_core.workload.sessions import first_of_session
from wait_core.workload.traces import Trace, load

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

MOST_REQUESTS = 100_000_000
"""Most requests of a dataset: gigabytes of columns."""

# The core looks numpy up when it meets the first array. An interrupt while it draws requests would break that look-up,
# which is a panic and not a KeyboardInterrupt: so it is done here, where nothing takes long.
_core.group_types(np.ones(1, np.uint32), np.ones(1, np.uint32), 1.0, 1)


@dataclass(frozen=True, kw_only=True)
class Follows:
    """Which requests are later turns: each is sent when one before it has finished and its user has thought.

    The prompt of a request that follows another is that one's prompt, its output, and at least one new token; its
    arrival is the earliest time at which it may be sent.

    Attributes
    ----------
    after : ndarray of int64, shape (n,)
        Index of the request that each follows, below its own; -1 for one that follows none.
    think_ns : ndarray of uint64, shape (n,)
        Time from the end of that request until this one is sent, ns.

    """

    after: npt.NDArray[np.int64]
    think_ns: npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class PrefixBlocks:
    """The blocks of tokens of each request by name: equal leading names are equal prefixes.

    Attributes
    ----------
    ids : ndarray of uint64, shape (k,)
        The names, of all requests one after the other; they may run on beyond the prompt into the output.
    offsets : ndarray of uint64, shape (n + 1,)
        Request i has ids[offsets[i]:offsets[i + 1]].
    tokens : int
        Tokens that a name covers.

    """

    ids: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.uint64]
    tokens: int

    @staticmethod
    def of(trace: Trace) -> PrefixBlocks | None:
        """Return the blocks of a trace, or None where it names none.

        The answer to a turn is named only by the turn that follows it, and counts for both.
        """
        if trace.hash_ids is None or trace.hash_offsets is None or trace.hash_block_tokens is None:
            return None
        tokens = trace.hash_block_tokens
        chains = [trace.hashes(i) for i in range(len(trace))]
        if trace.parent is not None:
            for i, parent in enumerate(trace.parent.tolist()):
                if parent < 0:
                    continue
                full = int(trace.prompt_tokens[parent]) // tokens
                whole = (int(trace.prompt_tokens[parent]) + int(trace.output_tokens[parent])) // tokens
                own = trace.hashes(i)
                if np.array_equal(own[:full], trace.hashes(parent)[:full]) and len(own) >= full:
                    chains[parent] = own[:whole]
        offsets = np.cumsum([0, *(len(chain) for chain in chains)], dtype=np.uint64)
        return PrefixBlocks(ids=np.concatenate(chains), offsets=offsets, tokens=tokens)

    def part(self, first: int, end: int) -> PrefixBlocks:
        """Return those of the requests first..end."""
        offsets = self.offsets[first : end + 1]
        return PrefixBlocks(ids=self.ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0], tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests to offer, in the order of their arrival.

    Attributes
    ----------
    name : str
        Name of the workload, for reports.
    arrival_ns : ndarray of uint64, shape (n,)
        Arrival times, ns.
    prompt, output : ndarray of uint32, shape (n,)
        Lengths in tokens.
    rate : float
        Mean requests per second; inf if all arrive at once.
    dropped : dict of str to int
        Rows of a trace that were left out, by reason.
    notes : tuple of str
        What was assumed of a trace, or ignored in it.
    tenant : ndarray of uint16, shape (n,), optional
        Tenants, indices of the setting `tenant_weights`.
    follows : Follows, optional
        Which of them are later turns of conversations; None: all arrive independently, an open loop.
    system_tokens : int, optional
        All prompts begin with this many common tokens, and a later turn with the whole conversation before it.
    prefix_blocks : PrefixBlocks, optional
        Their common prefixes, where that rule does not apply; None: they have none.
    parent : ndarray of int64, shape (n,), optional
        The request that each continues, where a trace records it; -1 for none. Unlike `follows` it delays no request.

    """

    name: str
    arrival_ns: npt.NDArray[np.uint64]
    prompt: npt.NDArray[np.uint32]
    output: npt.NDArray[np.uint32]
    rate: float
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tenant: npt.NDArray[np.uint16] | None = None
    follows: Follows | None = None
    system_tokens: int | None = None
    prefix_blocks: PrefixBlocks | None = None
    parent: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    def sessions(self) -> npt.NDArray[np.uint32] | None:
        """Return the first turn of the conversation of each request, as an index, shape (n,); None if not known."""
        before = self.parent if self.follows is None else self.follows.after
        return None if before is None else first_of_session(before)

    def window(self, start: float, count: int) -> Requests:
        """Return `count` requests in a row, from the fraction `start` of what can be skipped; times begin at 0.

        A turn whose predecessor is left out arrives independently.
        """
        first = round(start * max(0, len(self) - count))
        part = slice(first, first + count)
        arrival_ns = self.arrival_ns[part]
        tenant = None if self.tenant is None else self.tenant[part]
        follows = None
        if self.follows is not None:
            after = np.maximum(self.follows.after[part] - first, -1)
            follows = Follows(after=after, think_ns=self.follows.think_ns[part])
        blocks = None if self.prefix_blocks is None else self.prefix_blocks.part(first, first + len(arrival_ns))
        return replace(
            self,
            arrival_ns=arrival_ns - arrival_ns[0],
            prompt=self.prompt[part],
            output=self.output[part],
            tenant=tenant,
            follows=follows,
            prefix_blocks=blocks,
            parent=None if self.parent is None else np.maximum(self.parent[part] - first, -1),
        )

    def scaled(self, rate: float) -> Requests:
        """Return the same requests at another mean rate; as a Poisson stream, where they all arrive at once."""
        if len(self) < 2 or self.arrival_ns[-1] == self.arrival_ns[0]:
            times = sampled("p1d1", request_rate=rate, num_prompts=len(self)).arrival_ns
        else:
            since = (self.arrival_ns - self.arrival_ns[0]).astype(np.float64)
            times = np.rint(since * ((len(self) - 1) / rate * 1e9 / since[-1])).astype(np.uint64)
        return replace(self, arrival_ns=times, rate=rate)

    @staticmethod
    def of_tenants(each: Sequence[Requests]) -> Requests:
        """Merge the requests of several tenants by arrival; tenant i is the i-th. All must be open loops."""
        if any(requests.follows is not None for requests in each):
            raise _core.WaitCoreError("requests: those that follow others cannot be merged with other tenants' yet")
        order = np.argsort(np.concatenate([requests.arrival_ns for requests in each]), kind="stable")
        tenant = np.repeat(np.arange(len(each), dtype=np.uint16), [len(requests) for requests in each])
        return Requests(
            name=" + ".join(requests.name for requests in each),
            arrival_ns=np.concatenate([requests.arrival_ns for requests in each])[order],
            prompt=np.concatenate([requests.prompt for requests in each])[order],
            output=np.concatenate([requests.output for requests in each])[order],
            rate=sum(requests.rate for requests in each),
            tenant=tenant[order],
        )

    def types(self, most: int) -> tuple[list[tuple[int, int, float]], npt.NDArray[np.uint16]]:
        """Group the requests into at most `most` types by quantiles of the output length.

        Returns the types as (prompt, output, rate), and the type of each request. A type's lengths are the means of
        its members; where there are no more distinct pairs of lengths than `most`, the types are exactly these pairs.
        """
        # Thresholds depend on the mix alone where everything arrives at once.
        rate = self.rate if np.isfinite(self.rate) else 1.0
        return _core.group_types(self.prompt, self.output, rate, most)


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a host may pass with its requests besides their prompts. Columns have one entry a request.

    Attributes
    ----------
    predicted_tokens : ndarray of uint32, shape (n,), optional
        Predicted output lengths, tokens.
    predicted_log_error : float
        Stated standard deviation of ln(true / predicted).
    label : ndarray of uint16, shape (n,), optional
        Class labels.
    priority : ndarray of int32, shape (n,), optional
        Priorities; lower goes first.

    """

    predicted_tokens: npt.NDArray[np.uint32] | None = None
    predicted_log_error: float = 0.0
    label: npt.NDArray[np.uint16] | None = None
    priority: npt.NDArray[np.int32] | None = None

    @staticmethod
    def predicting(requests: Requests, log_error: float, seed: int) -> Hints:
        """Predict the lengths with lognormal errors of the given deviation, which is stated truly."""
        errors = np.random.default_rng(seed).normal(0.0, log_error, len(requests))
        tokens = np.clip(np.rint(requests.output * np.exp(errors)), 1, np.iinfo(np.uint32).max)
        return Hints(predicted_tokens=tokens.astype(np.uint32), predicted_log_error=log_error)


@checked
def sampled(
    source: str | Dataset,
    *,
    request_rate: float,
    num_prompts: int = 1000,
    seed: int = 0,
    burstiness: float = 1.0,
) -> Requests:
    """Sample a dataset, by name or by definition.

    Parameters
    ----------
    source : str or Dataset
        A name of `wait_core.workload.datasets.dataset_names`, any `p<prompt>d<output>`, or a definition.
    request_rate : float
        Mean requests per second; inf offers all at once.
    num_prompts : int
        Number of requests.
    seed : int
        Seed; lengths do not depend on the rate.
    burstiness : float
        Shape of the gamma-distributed gaps; 1 is Poisson, below is burstier. A dataset with arrivals of its own kind
        (bursts) keeps them unless this differs from 1.

    """
    _check_number(num_prompts)
    try:
        chosen = dataset(source) if isinstance(source, str) else source
        if burstiness != 1.0:
            chosen = replace(chosen, arrivals=Gamma(burstiness=burstiness))
    except (KeyError, ValueError) as error:
        raise _core.WaitCoreError(str(error)) from None
    arrival_ns, prompt, output, _, turns, system = _core.sample(chosen.to_dict(), num_prompts, request_rate, seed)
    return Requests(
        name=chosen.name,
        arrival_ns=arrival_ns,
        prompt=prompt,
        output=output,
        rate=request_rate,
        follows=None if turns is None else Follows(after=turns[0], think_ns=turns[1]),
        system_tokens=system,
    )


@checked
def replayed(
    source: Trace | str | os.PathLike[str],
    *,
    request_rate: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    burstiness: float = 1.0,
) -> Requests:
    """Replay a trace at its own times, or time-scaled to `request_rate`.

    A trace without arrival times needs `request_rate`; its rows then arrive in their order, as gamma-distributed gaps
    of the given burstiness (1 is Poisson) drawn from `seed`.
    """
    trace = source if isinstance(source, Trace) else load(source)
    notes = list(trace.notes)
    if trace.unit == "words":
        notes.append("each word is taken for one token")
    if trace.hash_ids is not None:
        notes.append("hash_ids name common prefixes, which are shared with the setting prefix_caching")
    if num_prompts is not None:
        _check_number(num_prompts)
        trace = trace.head(num_prompts)
    if trace.arrival_ns is None:
        if request_rate is None:
            raise _core.WaitCoreError(f"request_rate = None: {trace.source} has no arrival times, give a rate")
        arrivals = Gamma(burstiness=burstiness) if burstiness != 1.0 else Poisson()
        times = replace(dataset("p1d1"), arrivals=arrivals)
        arrival_ns = _core.sample(times.to_dict(), len(trace), request_rate, seed)[0]
        rate = request_rate
        notes.append(f"the file has no arrival times: they are drawn, with a burstiness of {burstiness:g}")
    else:
        if burstiness != 1.0:
            notes.append("the burstiness is ignored: the file has arrival times")
        if request_rate is not None:
            trace = trace.scaled(request_rate)
        assert trace.arrival_ns is not None  # noqa: S101 - scaling keeps the times
        arrival_ns = trace.arrival_ns.astype(np.uint64)
        rate = trace.rate or np.inf
    return Requests(
        name=trace.source,
        arrival_ns=arrival_ns,
        prompt=np.ascontiguousarray(trace.prompt_tokens, dtype=np.uint32),
        output=np.ascontiguousarray(trace.output_tokens, dtype=np.uint32),
        rate=rate,
        dropped=trace.dropped,
        notes=tuple(notes),
        prefix_blocks=PrefixBlocks.of(trace),
        parent=trace.parent,
    )


def offered(  # noqa: PLR0917 - one keyword of `simulate` each
    dataset_name: str | Dataset | None,
    dataset_path: Trace | str | os.PathLike[str] | None,
    requests: Requests | None,
    request_rate: float | None,
    num_prompts: int | None,
    seed: int,
    burstiness: float,
) -> Requests:
    """Make the requests that exactly one of a dataset, a trace and `requests` gives; see `sampled` and `replayed`."""
    given = [value for value in (dataset_name, dataset_path, requests) if value is not None]
    if len(given) != 1:
        raise _core.WaitCoreError(f"give exactly one of dataset_name, dataset_path and requests, not {len(given)}")
    if requests is not None:
        return requests
    if dataset_path is not None:
        return replayed(
            dataset_path, request_rate=request_rate, num_prompts=num_prompts, seed=seed, burstiness=burstiness
        )
    if request_rate is None:
        raise _core.WaitCoreError("request_rate = None: a dataset needs a rate in requests per second")
    assert dataset_name is not None  # noqa: S101 - one of three is given
    return sampled(
        dataset_name,
        request_rate=request_rate,
        num_prompts=1000 if num_prompts is None else num_prompts,
        seed=seed,
        burstiness=burstiness,
    )


def _check_number(num_prompts: int) -> None:
    if not 1 <= num_prompts <= MOST_REQUESTS:
        raise _core.WaitCoreError(f"num_prompts = {num_prompts}: must be between 1 and {MOST_REQUESTS:,}")

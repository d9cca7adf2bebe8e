"""The trace itself: columns of equal length, one entry per request, in order of arrival."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wait_core._core import WaitCoreError
from wait_core.files import as_unicode
from wait_core.workload.traces.fields import MAX_NS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

Unit = Literal["tokens", "words"]
_MAX_WINDOWS = 10_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Requests in order of arrival; every array is read-only.

    Attributes
    ----------
    prompt_tokens, output_tokens : uint32, shape (n,)
        Lengths in `unit`, each at least 1.
    arrival_ns : int64, shape (n,), or None
        Nanoseconds since the first request, never decreasing; None for a file of lengths only.
    class_index : uint32, shape (n,), or None
        Index into `class_names`.
    class_names : tuple of str
        The classes that the file distinguishes (model, request type), in order of first appearance.
    hash_ids : uint64, shape (k,), or None
        Prefix-block ids of all requests, one after the other; see `hashes`.
    hash_offsets : int64, shape (n + 1,), or None
        Request i owns hash_ids[hash_offsets[i]:hash_offsets[i + 1]].
    hash_block_tokens : int or None
        Tokens that one hash id covers.
    parent : int64, shape (n,), or None
        Index of the request whose conversation each continues, -1 for one that begins a conversation.
    turn : uint32, shape (n,), or None
        Number of the turn in its conversation, from 1.
    unit : {"tokens", "words"}
        What the lengths count. Words where the file holds text and no tokenizer was given.
    source, format : str
        The file, and the format it was read as.
    dropped : dict of str to int
        Rows left out, by reason.
    notes : tuple of str
        Approximations and defaults that affect the figures.

    """

    prompt_tokens: npt.NDArray[np.uint32]
    output_tokens: npt.NDArray[np.uint32]
    arrival_ns: npt.NDArray[np.int64] | None = None
    class_index: npt.NDArray[np.uint32] | None = None
    class_names: tuple[str, ...] = ()
    hash_ids: npt.NDArray[np.uint64] | None = None
    hash_offsets: npt.NDArray[np.int64] | None = None
    hash_block_tokens: int | None = None
    parent: npt.NDArray[np.int64] | None = None
    turn: npt.NDArray[np.uint32] | None = None
    unit: Unit = "tokens"
    source: str = ""
    format: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.prompt_tokens)
        if n == 0:
            dropped = dict(sorted(self.dropped.items()))
            raise WaitCoreError(f"prompt_tokens: a trace needs at least one request (dropped: {dropped})")
        columns = {
            "prompt_tokens": (self.prompt_tokens, np.uint32, n),
            "output_tokens": (self.output_tokens, np.uint32, n),
            "arrival_ns": (self.arrival_ns, np.int64, n),
            "class_index": (self.class_index, np.uint32, n),
            "hash_ids": (self.hash_ids, np.uint64, None),
            "hash_offsets": (self.hash_offsets, np.int64, n + 1),
            "parent": (self.parent, np.int64, n),
            "turn": (self.turn, np.uint32, n),
        }
        for name, (values, dtype, length) in columns.items():
            if values is None:
                continue
            if values.dtype != dtype or values.ndim != 1 or length not in (None, len(values)):
                raise WaitCoreError(
                    f"{name}: {values.dtype}{values.shape} where {np.dtype(dtype)}({n if length is None else length},) "
                    "is needed"
                )
            # A view, so that the caller's own array stays writable.
            frozen = values.view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)
        if min(int(self.prompt_tokens.min()), int(self.output_tokens.min())) < 1:
            raise WaitCoreError("prompt_tokens and output_tokens: every length must be at least 1")
        if self.arrival_ns is not None and (self.arrival_ns[0] != 0 or np.any(np.diff(self.arrival_ns) < 0)):
            raise WaitCoreError("arrival_ns: must start at 0 and never decrease")
        if self.class_index is not None and int(self.class_index.max()) >= len(self.class_names):
            raise WaitCoreError(f"class_index: {int(self.class_index.max())} has no name in {self.class_names}")
        if self.parent is not None and not np.all((self.parent >= -1) & (self.parent < np.arange(n))):
            raise WaitCoreError("parent: must be the index of an earlier request, or -1 for none")
        if (self.hash_ids is None) != (self.hash_offsets is None):
            raise WaitCoreError("hash_ids and hash_offsets: one needs the other")
        if self.hash_ids is not None and self.hash_offsets is not None:
            ends = self.hash_offsets
            if ends[0] != 0 or ends[-1] != len(self.hash_ids) or np.any(np.diff(ends) < 0):
                raise WaitCoreError(f"hash_offsets: must rise from 0 to {len(self.hash_ids)}")

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def hashes(self, index: int) -> npt.NDArray[np.uint64]:
        """Return the prefix-block ids of request `index`, empty where the file gives none."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: {index} is outside 0..{len(self) - 1}")
        if self.hash_ids is None or self.hash_offsets is None:
            return np.empty(0, dtype=np.uint64)
        return self.hash_ids[self.hash_offsets[index] : self.hash_offsets[index + 1]]

    def head(self, n: int) -> Trace:
        """Return the first `n` requests (all of them if there are fewer); `dropped` still describes the whole file."""
        if n < 1:
            raise WaitCoreError(f"n: {n} is not at least 1")
        n = min(n, len(self))
        offsets = None if self.hash_offsets is None else self.hash_offsets[: n + 1]
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[:n],
            output_tokens=self.output_tokens[:n],
            arrival_ns=None if self.arrival_ns is None else self.arrival_ns[:n],
            class_index=None if self.class_index is None else self.class_index[:n],
            hash_ids=None if self.hash_ids is None or offsets is None else self.hash_ids[: offsets[-1]],
            hash_offsets=offsets,
            parent=None if self.parent is None else self.parent[:n],
            turn=None if self.turn is None else self.turn[:n],
        )

    @property
    def duration_s(self) -> float | None:
        """Seconds from the first arrival to the last; None without arrivals."""
        return None if self.arrival_ns is None else int(self.arrival_ns[-1]) / NS_PER_S

    @property
    def rate(self) -> float | None:
        """Mean arrival rate in requests/s, (n - 1) / duration; None without arrivals or with all of them at once."""
        return (len(self) - 1) / self.duration_s if self.duration_s else None

    def scaled(self, rate: float) -> Trace:
        """Return the same requests with all times stretched so that the mean rate is `rate` requests/s.

        The pattern of arrivals (bursts, order, ties) is kept. Each time is computed in exact integers and rounded to
        the nearest nanosecond.
        """
        if isinstance(rate, bool) or not math.isfinite(rate) or rate <= 0:
            raise WaitCoreError(f"rate: {rate!r} is not a finite number above 0 (requests/s)")
        if self.arrival_ns is None:
            raise WaitCoreError(f"rate: {self.source or 'this trace'} has no arrival times to scale")
        span = int(self.arrival_ns[-1])
        if span == 0:
            raise WaitCoreError(f"rate: all requests of {self.source or 'this trace'} arrive at once; nothing to scale")
        # repr() gives the decimal that the caller wrote: 0.1 is a tenth, not the double beside it.
        factor = Fraction((len(self) - 1) * NS_PER_S) / (Fraction(repr(float(rate))) * span)
        up, down = factor.numerator, factor.denominator
        if (span * up) // down >= MAX_NS:
            raise WaitCoreError(f"rate: {rate!r} stretches {self.duration_s} s beyond 292 years")
        exact = (self.arrival_ns.astype(object) * up + down // 2) // down
        return replace(self, arrival_ns=exact.astype(np.int64))

    def rates(self, window_s: float = 60.0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the starts (s) of all whole windows of `window_s` seconds and the arrivals per second in each."""
        if self.arrival_ns is None or self.duration_s is None:
            raise WaitCoreError(f"window_s: {self.source or 'this trace'} has no arrival times")
        if not math.isfinite(window_s) or not 0 < window_s <= self.duration_s:
            raise WaitCoreError(f"window_s: {window_s!r} is not above 0 and at most the duration, {self.duration_s} s")
        windows = int(self.duration_s / window_s)
        if windows > _MAX_WINDOWS:
            raise WaitCoreError(f"window_s: {window_s!r} cuts {self.duration_s} s into {windows} windows")
        index = (self.arrival_ns / (window_s * NS_PER_S)).astype(np.int64)
        counts = np.bincount(index[index < windows], minlength=windows)
        return np.arange(windows, dtype=np.float64) * window_s, (counts / window_s).astype(np.float64)

    def summary(self) -> dict[str, Any]:
        """Return plain figures: sizes, rate, burstiness, quantiles of both lengths, what was dropped.

        `arrival_cv` is the coefficient of variation of the times between arrivals: 1 for Poisson arrivals, more for
        bursts.
        """
        result: dict[str, Any] = {
            "source": self.source,
            "format": self.format,
            "unit": self.unit,
            "requests": len(self),
            "duration_s": self.duration_s,
            "rate": self.rate,
            "arrival_cv": self._arrival_cv(),
        }
        for name, values in (("prompt", self.prompt_tokens), ("output", self.output_tokens)):
            p50, p90, p99 = np.percentile(values, [50, 90, 99])
            result |= {
                f"{name}_mean": float(values.mean()),
                f"{name}_p50": float(p50),
                f"{name}_p90": float(p90),
                f"{name}_p99": float(p99),
                f"{name}_max": int(values.max()),
            }
        if self.class_index is not None:
            counts = np.bincount(self.class_index, minlength=len(self.class_names))
            result["classes"] = dict(zip(self.class_names, counts.tolist(), strict=True))
        result["dropped"] = dict(self.dropped)
        result["notes"] = list(self.notes)
        return result

    def _arrival_cv(self) -> float | None:
        if self.arrival_ns is None or self.arrival_ns[-1] == 0:
            return None
        gaps = np.diff(self.arrival_ns)
        return float(gaps.std() / gaps.mean())


class TraceBuilder:
    """Collects rows in compact arrays; `build` sorts them by arrival and counts time from the first."""

    def __init__(self) -> None:
        self._prompt = array("I")
        self._output = array("I")
        self._arrival = array("q")
        self._class = array("I")
        self._classes: dict[str, int] = {}
        self._hash_ids = array("Q")
        self._hash_offsets = array("q", [0])
        self._chat = array("q")
        self._parent_chat = array("q")
        self._turn = array("I")
        self.dropped: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._prompt)

    def drop(self, reason: str) -> None:
        """Count one row left out for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add(
        self,
        prompt: int,
        output: int,
        *,
        arrival_ns: int | None = None,
        class_name: str | None = None,
        hash_ids: Sequence[int] | None = None,
        chat: tuple[int, int, int] | None = None,
        zero_output: str = "output length 0",
    ) -> None:
        """Add one request, of a chat with its id, that of the chat it continues (or -1), and its turn.

        A length of zero drops the row, an output of zero under the reason `zero_output`.
        """
        if output == 0:
            self.drop(zero_output)
            return
        if prompt == 0:
            self.drop("prompt length 0")
            return
        self._prompt.append(prompt)
        self._output.append(output)
        if arrival_ns is not None:
            self._arrival.append(arrival_ns)
        if class_name is not None:
            self._class.append(self._classes.setdefault(class_name, len(self._classes)))
        if hash_ids is not None:
            self._hash_ids.extend(hash_ids)
            self._hash_offsets.append(len(self._hash_ids))
        if chat is not None:
            self._chat.append(chat[0])
            self._parent_chat.append(chat[1])
            self._turn.append(chat[2])

    def extend(
        self,
        prompt: npt.NDArray[np.int64],
        output: npt.NDArray[np.int64],
        *,
        arrival_ns: npt.NDArray[np.int64] | None,
        class_names: Sequence[str] | None,
        zero_output: str,
    ) -> None:
        """Add a request for each entry of the columns, as `add` does one by one."""
        kept = (prompt > 0) & (output > 0)
        if not kept.all():
            for reason, rows in ((zero_output, output == 0), ("prompt length 0", (prompt == 0) & (output > 0))):
                if number := int(rows.sum()):
                    self.dropped[reason] = self.dropped.get(reason, 0) + number
        self._prompt.frombytes(prompt[kept].astype(np.uint32).tobytes())
        self._output.frombytes(output[kept].astype(np.uint32).tobytes())
        if arrival_ns is not None:
            self._arrival.frombytes(arrival_ns[kept].tobytes())
        if class_names is not None:
            known = self._classes
            self._class.extend(known.setdefault(name, len(known)) for name in compress(class_names, kept.tolist()))

    def build(self, *, source: str, format_name: str, unit: Unit = "tokens", notes: tuple[str, ...] = ()) -> Trace:
        """Return the trace. Columns that not every row filled are absent."""
        n = len(self._prompt)
        prompt, output = np.array(self._prompt, np.uint32), np.array(self._output, np.uint32)
        arrival = np.array(self._arrival, np.int64) if n and len(self._arrival) == n else None
        classes = np.array(self._class, np.uint32) if n and len(self._class) == n else None
        has_hashes = bool(self._hash_ids) and len(self._hash_offsets) == n + 1
        ids = np.array(self._hash_ids, np.uint64) if has_hashes else None
        offsets = np.array(self._hash_offsets, np.int64) if has_hashes else None
        chats = np.array([self._chat, self._parent_chat, self._turn], np.int64) if n and len(self._chat) == n else None
        if arrival is not None:
            if np.any(np.diff(arrival) < 0):
                notes += ("rows were not in order of arrival; they were sorted, equal times in file order",)
                order = np.argsort(arrival, kind="stable")
                prompt, output, arrival = prompt[order], output[order], arrival[order]
                classes = None if classes is None else classes[order]
                chats = None if chats is None else chats[:, order]
                if ids is not None and offsets is not None:
                    ids = np.concatenate([ids[offsets[i] : offsets[i + 1]] for i in order])
                    offsets = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])]).astype(np.int64)
            arrival = arrival - arrival[0]
        return Trace(
            prompt_tokens=prompt,
            output_tokens=output,
            arrival_ns=arrival,
            class_index=classes,
            class_names=tuple(self._classes) if classes is not None else (),
            hash_ids=ids,
            hash_offsets=offsets,
            hash_block_tokens=_hash_block_tokens(prompt, offsets),
            parent=None if chats is None else _parents(chats[0], chats[1]),
            turn=None if chats is None else chats[2].astype(np.uint32),
            unit=unit,
            source=as_unicode(source),  # results contain it
            format=format_name,
            dropped=dict(self.dropped),
            notes=notes,
        )


def _hash_block_tokens(prompt: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64] | None) -> int | None:
    """Return the block size, 512 (Mooncake) or 16 (Qwen-Bailian), that explains the hash ids of the most requests."""
    if offsets is None:
        return None
    blocks = np.diff(offsets)
    return max((512, 16), key=lambda size: int(np.count_nonzero(-(-prompt.astype(np.int64) // size) == blocks)))


def _parents(chat: npt.NDArray[np.int64], parent_chat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each row the index of the row before it that has the id of its parent, or -1."""
    rows: dict[int, int] = {}
    parents = np.full(len(chat), -1, np.int64)
    for i, (own, parent) in enumerate(zip(chat.tolist(), parent_chat.tolist(), strict=True)):
        parents[i] = rows.get(parent, -1)
        rows[own] = i
    return parents

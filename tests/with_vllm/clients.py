"""Kinds of clients: conversations, questions about documents, bursts, samples, early leavers.

Each kind is a generator (`serving.Client`), drawn from a seed: what a client asks does not depend on the scheduler, and
when it asks depends on it in a closed loop only.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from in_process import random_prompt
from serving import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from serving import Client

    Lengths = Callable[[random.Random], int]

SECOND = 1_000_000_000


def generator(seed: int) -> random.Random:
    """Return what the functions below draw from."""
    return random.Random(seed)


def lognormal(median: float, sigma: float, most: int, least: int = 1) -> Lengths:
    """Draw lognormal lengths in tokens, clipped."""
    return lambda draw: max(least, min(most, round(median * draw.lognormvariate(0.0, sigma))))


def conversations(
    seed: int,
    count: int,
    *,
    turns: int,
    system: int,
    question: Lengths,
    answer: Lengths,
    think_s: float = 0.0,
    rounds: int = 1,
) -> list[Client]:
    """Closed loop: `count` users hold `rounds` conversations each; all of them begin with one system prompt.

    `think_s` is the mean time from an answer to the next question.
    """
    shared = random_prompt(random.Random(f"{seed} system"), system)

    def user(index: int) -> Client:
        draw = random.Random(f"{seed} user {index}")
        now_ns = 0
        for talk in range(rounds):
            said = list(shared)
            for turn in range(turns):
                said += random_prompt(draw, question(draw))
                call = Call(f"user {index} talk {talk} turn {turn}", list(said), answer(draw))
                now_ns, (answered,) = yield now_ns + round(SECOND * think_s * draw.expovariate(1.0)), [call]
                said += answered

    return [user(index) for index in range(count)]


def arrivals(draw: random.Random, count: int, rate: float) -> Iterator[int]:
    """Draw a Poisson stream: `count` times in ns, `rate` per second."""
    at = 0.0
    for _ in range(count):
        at += draw.expovariate(rate)
        yield round(SECOND * at)


def bursts(draw: random.Random, count: int, size: int, every_s: float) -> Iterator[int]:
    """Draw `count` times in ns: `size` at once, `every_s` seconds apart in the mean."""
    at = 0.0
    for index in range(count):
        if index and index % size == 0:
            at += every_s * draw.uniform(0.5, 1.5)
        yield round(SECOND * at)


def once(at_ns: int, calls: Sequence[Call]) -> Client:
    """Make a client that calls once."""
    yield at_ns, calls


def stream(draw: random.Random, times: Iterator[int], prompt: Lengths, output: Lengths) -> list[Client]:
    """Open loop: unrelated prompts."""
    return [
        once(at_ns, [Call(f"call {index}", random_prompt(draw, prompt(draw)), output(draw))])
        for index, at_ns in enumerate(times)
    ]


def retrieval(
    draw: random.Random, times: Iterator[int], *, documents: int, document: Lengths, system: int, answer: Lengths
) -> list[Client]:
    """Open loop: a system prompt, one of a few documents (the first ones are asked for most), a question."""
    head = random_prompt(draw, system)
    texts = [random_prompt(draw, document(draw)) for _ in range(documents)]
    weights = [1.0 / (1 + rank) for rank in range(documents)]
    made = []
    for index, at_ns in enumerate(times):
        (text,) = draw.choices(texts, weights)
        call = Call(f"call {index}", [*head, *text, *random_prompt(draw, draw.randint(20, 60))], answer(draw))
        made.append(once(at_ns, [call]))
    return made


def samples(draw: random.Random, times: Iterator[int], n: int, prompt: Lengths, output: Lengths) -> list[Client]:
    """Open loop: n answers to each prompt."""
    made = []
    for index, at_ns in enumerate(times):
        asked = random_prompt(draw, prompt(draw))
        made.append(once(at_ns, [Call(f"call {index}.{one}", asked, output(draw)) for one in range(n)]))
    return made


def leavers(
    draw: random.Random, times: Iterator[int], prompt: Lengths, stays: Lengths, max_tokens: int
) -> list[Client]:
    """Open loop: clients that ignore EOS, ask for `max_tokens`, and leave long before."""
    made = []
    for index, at_ns in enumerate(times):
        asked = random_prompt(draw, prompt(draw))
        call = Call(f"call {index}", asked, max_tokens + 1, max_tokens, ignores_eos=True, leaves_after=stays(draw))
        made.append(once(at_ns, [call]))
    return made

"""How many KV blocks one request holds in one group of layers, by formulas, after each step that scheduled it.

Facts of vLLM 0.32 (``v1/core/single_type_kv_cache_manager.py``), restated as a model small enough to be read beside
the core's; ``test_held_blocks.py`` holds it against vLLM's own manager. A step comes with two counts of tokens.
`processed`: those whose computation is over, which is what has been computed less what is in flight. `reached`: those
computed after the step, drafts included. A draft model that writes KV of its own looks `ahead` of that. Of a request
that hit the prefix cache, all begin at the hit. Lengths end at the model's.
"""

from __future__ import annotations

from typing import Any, Protocol


class Held(Protocol):
    """The blocks of one request in one group."""

    def hit(self, tokens: int) -> None: ...

    def step(self, processed: int, reached: int, ahead: int = 0) -> int: ...


class Attention:
    """Blocks are taken for every token, and freed once no later token attends to them."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0  # blocks in the request's list; never shorter: rejected drafts keep their place

    def unseen(self, processed: int) -> int:
        """Return how many leading tokens no later token attends to."""
        del processed
        return 0

    def hit(self, tokens: int) -> None:
        self.length = tokens // self.block_size

    def step(self, processed: int, reached: int, ahead: int = 0) -> int:
        self.length = max(self.length, -(-(reached + ahead) // self.block_size))
        return self.length - self.unseen(processed) // self.block_size


class SlidingWindow(Attention):
    """A token attends to itself and the `window` - 1 before it."""

    def __init__(self, block_size: int, window: int) -> None:
        super().__init__(block_size)
        self.window = window

    def unseen(self, processed: int) -> int:
        return max(0, processed + 1 - self.window)


class ChunkedLocal(Attention):
    """A token attends to those before it in its chunk."""

    def __init__(self, block_size: int, chunk: int) -> None:
        super().__init__(block_size)
        self.chunk = chunk

    def unseen(self, processed: int) -> int:
        return processed // self.chunk * self.chunk


class State:
    """A recurrent state, in its place from the first token to the last, and one for each draft."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def hit(self, tokens: int) -> None:
        assert tokens == 0, "vLLM caches no prefix of a model that keeps no states"

    def step(self, processed: int, reached: int, ahead: int = 0) -> int:
        del processed, reached, ahead
        return self.blocks


class AlignedState:
    """A recurrent state that leaves a copy of itself at the end of every block it passes, for the prefix cache.

    The copy left last is given back by the step after the one that moved on, when that has been processed.
    """

    def __init__(self, block_size: int, blocks: int) -> None:
        self.block_size = block_size
        self.drafts = blocks - 1
        self.places: list[bool] = []  # by index of block; those before the copy left last are empty
        self.allocated = False

    def hit(self, tokens: int) -> None:
        if tokens:
            self.places = [False] * (tokens // self.block_size - 1) + [True]

    def step(self, processed: int, reached: int, ahead: int = 0) -> int:
        del ahead  # draft models have no states
        passed = min(max(0, processed - 1) // self.block_size, len(self.places))
        self.places[:passed] = [False] * passed
        current = -(-reached // self.block_size) - 1
        if current + 1 + self.drafts > len(self.places):
            length = len(self.places)
            self.places += [False] * (current - length)
            if self.allocated:
                for at in range(length - self.drafts, min(length, current)):
                    self.places.append(self.places[at])
                    self.places[at] = False
            self.places += [True] * (current + 1 + self.drafts - len(self.places))
        self.allocated = True
        return sum(self.places)


def held(group: dict[str, Any], block_size: int) -> Held:
    """Return what a new request holds of one of ``kv_groups`` (once, whatever its count)."""
    size = group.get("block_size", block_size)
    match group["kind"]:
        case "sliding_window":
            return SlidingWindow(size, group["window"])
        case "chunked_local":
            return ChunkedLocal(size, group["chunk"])
        case "state" if group.get("aligned", False):
            return AlignedState(size, group.get("blocks", 1))
        case "state":
            return State(group.get("blocks", 1))
    return Attention(size)

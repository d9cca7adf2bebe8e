"""What a router needs to know of a request to an OpenAI-compatible server: its length, its bound, its prefix.

Absent: a tokenizer. Token ids are counted; for text the length is estimated from its bytes, and compared in blocks of
as many bytes as a block of tokens takes on average. An error of length shifts all replicas alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES_PER_TOKEN = 4.0
"""Of UTF-8, in English and Chinese text alike, with the vocabularies of current models."""
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Asked:
    """A request as a router sees it.

    Attributes
    ----------
    prompt_tokens
        Length of the prompt, tokens; at least 1.
    max_tokens
        Most output tokens, where the client gave a bound.
    block_hashes
        One integer for each full block of the prompt, each identifying everything up to there.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    block_hashes: tuple[int, ...] = ()


def read(payload: object, *, block_size: int = 16, bytes_per_token: float = BYTES_PER_TOKEN) -> Asked | None:
    """Read the body of a completion, a chat completion or an embedding; None for anything else.

    `payload` has the body's fields as attributes. Several prompts in one body are counted together and share nothing.
    """
    field = next((name for name in ("messages", "prompt", "input") if getattr(payload, name, None)), None)
    if field is None:
        return None
    prompt = getattr(payload, field)
    most = getattr(payload, "max_completion_tokens", None) or getattr(payload, "max_tokens", None)
    if field == "messages":
        prompt = "".join(_texts(prompt))
    if isinstance(prompt, str):
        data = prompt.encode(errors="replace")
        tokens = math.ceil(len(data) / bytes_per_token)
        return Asked(max(1, tokens), most, _chain(data, max(1, round(block_size * bytes_per_token))))
    if isinstance(prompt[0], int):
        return Asked(len(prompt), most, _chain(prompt, block_size))
    several = (math.ceil(len(p.encode()) / bytes_per_token) if isinstance(p, str) else len(p) for p in prompt)
    return Asked(max(1, sum(several)), most)


def _chain(content: bytes | Sequence[int], step: int) -> tuple[int, ...]:
    """Return a hash of everything up to the end of each full block; they compare within one process only."""
    hashes = []
    last = 0
    for start in range(0, len(content) - step + 1, step):
        block = content[start : start + step]
        last = hash((last, block if isinstance(block, bytes) else tuple(block))) & _WORD
        hashes.append(last)
    return tuple(hashes)


def _texts(value: Any) -> list[str]:
    """Return the texts of chat messages, in order: roles, contents, and the text among the parts of a content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name in ("role", "content", "text") for text in _texts(value.get(name))]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    if value is None:
        return []
    return [text for name in ("role", "content", "text") for text in _texts(getattr(value, name, None))]

"""The text of vLLM's code: what restates some of it is used only where that reads as it did."""

from __future__ import annotations

import hashlib
import inspect
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def digest(places: Iterable[str]) -> str:
    """Return a digest of the source at `places` ("module:name"), blind to indentation and line breaks.

    Where one of them is missing, what is returned says which.
    """
    texts = []
    for place in places:
        module, name = place.split(":")
        try:
            texts.append(inspect.getsource(attrgetter(name)(import_module(module))))
        except (ImportError, AttributeError, OSError):
            return f"no {name}"
    return hashlib.sha256("\n".join(" ".join(text.split()) for text in texts).encode()).hexdigest()[:16]

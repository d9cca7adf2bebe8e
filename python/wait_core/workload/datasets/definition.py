"""A synthetic workload, and its JSON."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wait_core._core import WaitCoreError
from wait_core.workload.datasets.distributions import (
    ARRIVALS,
    DISTRIBUTIONS,
    MAX_LENGTH,
    Arrivals,
    Distribution,
    is_length,
    is_number,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")


@dataclass(frozen=True)
class Component:
    """One type of request: a share of the arrivals, prompt and output drawn independently.

    Attributes
    ----------
    name : str
        The class that requests of this component carry.
    weight : float
        Share of the requests, relative to the other components of the phase.
    prompt, output : Distribution
        Lengths in tokens.

    """

    name: str
    weight: float
    prompt: Distribution
    output: Distribution

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), "component.name", self.name, "a name")
        require(is_number(self.weight) and self.weight > 0, "component.weight", self.weight, "a number above 0")


@dataclass(frozen=True)
class Phase:
    """The mixture that holds from request number ceil(start·N) on, N requests in all.

    Attributes
    ----------
    start : float
        Share of the requests before this phase, in [0, 1).
    components : tuple of Component
        The mixture.

    """

    start: float
    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        require(is_number(self.start) and 0 <= self.start < 1, "phase.start", self.start, "a number in [0, 1)")
        require(len(self.components) > 0, "phase.components", self.components, "a list of at least one component")
        names = [component.name for component in self.components]
        require(len(set(names)) == len(names), "phase.components", names, "a list of components with distinct names")


@dataclass(frozen=True)
class Conversations:
    """How requests are turns of conversations; the prompt of a component is then what the user adds in a turn.

    A turn's prompt is the system prompt, all that was said before, and what the user adds. It is sent when the answer
    before it has ended and its user has thought. Conversations begin at the rate at which their mean number of turns
    makes the rate of requests that was asked for.

    Attributes
    ----------
    turns : float
        Mean number of turns, geometrically distributed from 1 on.
    think_s, think_sigma : float
        Median of the time to think (s) and standard deviation of its logarithm, which is normal; a day at most.
    system : int
        Tokens of the system prompt, the same in all conversations.
    max_length : int
        A conversation ends before a turn whose prompt and answer together would be longer (tokens).

    """

    turns: float
    think_s: float
    think_sigma: float
    system: int
    max_length: int

    def __post_init__(self) -> None:
        right = is_number(self.turns) and self.turns >= 1
        require(right, "conversations.turns", self.turns, "a finite number of at least 1")
        for name, value in (("think_s", self.think_s), ("think_sigma", self.think_sigma)):
            require(is_number(value) and value >= 0, f"conversations.{name}", value, "a finite number of at least 0")
        right = self.system == 0 or is_length(self.system)
        require(right, "conversations.system", self.system, f"an integer from 0 to {MAX_LENGTH}")
        right = is_length(self.max_length)
        require(right, "conversations.max_length", self.max_length, f"an integer from 1 to {MAX_LENGTH}")


@dataclass(frozen=True)
class Dataset:
    """A synthetic workload, up to its rate, its number of requests and its seed.

    Attributes
    ----------
    name, description : str
        What it is called and what it is like.
    arrivals : Arrivals
        The arrival process.
    phases : tuple of Phase
        The mixtures, by rising start; the first starts at 0.
    conversations : Conversations or None
        Whether requests are turns of conversations; None: each stands alone.

    """

    name: str
    description: str
    arrivals: Arrivals
    phases: tuple[Phase, ...]
    conversations: Conversations | None = None

    def __post_init__(self) -> None:
        starts = [phase.start for phase in self.phases]
        right = bool(starts) and starts[0] == 0 and all(a < b for a, b in itertools.pairwise(starts))
        require(right, "dataset.phases", starts, "a list of rising starts, the first of them 0")

    def mean_lengths(self) -> tuple[float, float]:
        """Return the mean prompt and the mean output length (tokens) over all phases; in conversations of one turn."""
        ends = [phase.start for phase in self.phases[1:]] + [1.0]
        prompt = output = 0.0
        for phase, end in zip(self.phases, ends, strict=True):
            total = sum(component.weight for component in phase.components)
            for component in phase.components:
                share = (end - phase.start) * component.weight / total
                prompt += share * component.prompt.mean()
                output += share * component.output.mean()
        return prompt, output

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and texts; distributions and arrivals carry their `kind`.

        What is None is left out.
        """
        plain = _plain(self)
        assert isinstance(plain, dict)  # noqa: S101  # tells the type checker what _plain makes of a dataclass
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as JSON, the form that the simulator reads."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Dataset:
        """Return the dataset that `to_dict` describes.

        Raises
        ------
        WaitCoreError
            Names the key and the value that are wrong, and for an unknown key the nearest known one.

        """
        fields = _fields(cls, data, "dataset")
        phases = []
        for phase in _list(fields["phases"], "dataset.phases"):
            given = _fields(Phase, phase, "phase")
            components = [
                _fields(Component, component, "component")
                for component in _list(given["components"], "phase.components")
            ]
            for component in components:
                component["prompt"] = _tagged(DISTRIBUTIONS, component["prompt"], "component.prompt")
                component["output"] = _tagged(DISTRIBUTIONS, component["output"], "component.output")
            phases.append(Phase(given["start"], tuple(Component(**component) for component in components)))
        arrivals = _tagged(ARRIVALS, fields["arrivals"], "dataset.arrivals")
        turns = fields.get("conversations")
        conversations = None if turns is None else Conversations(**_fields(Conversations, turns, "conversations"))
        return cls(fields["name"], fields["description"], arrivals, tuple(phases), conversations)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        kind: dict[str, object] = {"kind": value.kind} if isinstance(value, Distribution | Arrivals) else {}
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return kind | {name: item for name, item in fields.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise WaitCoreError(f"{where}: {value!r} is not a list")
    return list(value)


def _fields(cls: type, data: object, where: str) -> dict[str, Any]:
    """Return `data` as keyword arguments of `cls`: all fields without a default, no other key, lists as tuples."""
    if not isinstance(data, dict):
        raise WaitCoreError(f"{where}: {data!r} is not an object")
    known = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise WaitCoreError(f"{where}: {key!r} is unknown; {hint}known: {', '.join(known)}")
    needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in data]:
        raise WaitCoreError(f"{where}: {missing[0]!r} is missing")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _tagged(kinds: Mapping[str, type[_T]], data: object, where: str) -> _T:
    """Return the object of the class that data["kind"] names."""
    if not isinstance(data, dict) or data.get("kind") not in kinds:
        kind = data.get("kind") if isinstance(data, dict) else data
        raise WaitCoreError(f"{where}.kind: {kind!r} is not {', '.join(kinds)}")
    cls = kinds[data["kind"]]
    return cls(**_fields(cls, {key: value for key, value in data.items() if key != "kind"}, where))

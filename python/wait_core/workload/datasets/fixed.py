"""The panel: the fixed workloads, loads, seeds and memory on which quality claims are made."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wait_core._core import WaitCoreError
from wait_core.checked import checked
from wait_core.files import read_object
from wait_core.workload.datasets.definition import Component, Dataset, Phase
from wait_core.workload.datasets.distributions import Constant, Poisson, require

_CONSTANT_NAME = re.compile(r"p([1-9]\d{0,8})d([1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True)
class TraceWorkload:
    """A recorded trace that the panel replays at scaled times where its file is given.

    Attributes
    ----------
    name, description : str
        What it is called and what it is like.
    trace : str
        Name of the file, to be looked for in the folder of traces that the user gives; the product ships none.

    """

    name: str
    description: str
    trace: str


@dataclass(frozen=True)
class Engine:
    """A GPU and a memory on which the panel runs some of its workloads.

    Attributes
    ----------
    name : str
        What it is called.
    iteration_time : str
        Name of the iteration-time law.
    kv_blocks : int or None
        Memory, blocks of 16 tokens; None for what goes with the law.
    max_num_seqs, token_budget : int
        Most residents, and the default tokens of an iteration.
    workloads : tuple of str
        What runs on it.
    prefix_caching : bool
        Whether the scheduler keeps a prefix cache.
    loads : tuple of float or None
        Loads that are run, where they are not the panel's.

    """

    name: str
    iteration_time: str
    kv_blocks: int | None
    max_num_seqs: int
    token_budget: int
    workloads: tuple[str, ...]
    prefix_caching: bool = False
    loads: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """Everything that the panel of the quality claims fixes, from `panel.json`.

    Attributes
    ----------
    iteration_time : str
        Name of the iteration-time law.
    capacity_tokens, block_size, kv_blocks, max_num_seqs : int
        Memory (tokens; tokens per block; blocks) and the most requests running.
    num_requests : int
        Requests per run; every one of them finishes.
    seeds : dict of str to tuple of int
        "choose": seeds on which reference settings are chosen; "compare": seeds on which policies are compared.
    loads : tuple of float
        Rates relative to the capacity of the workload.
    watermarks, token_budgets : tuple
        The grid of static settings from which the reference is chosen.
    slo : dict of str to float
        "ttft_s" and "tpot_s" (s): a request within both counts for goodput.
    held_out : tuple of str
        Workloads and engines never used for tuning; marked in every table.
    engines : dict of str to Engine
        By name; the first is the one that the fields above describe.
    workloads : dict of str to Dataset or TraceWorkload
        By name, in the order of the tables.

    """

    iteration_time: str
    capacity_tokens: int
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    num_requests: int
    seeds: dict[str, tuple[int, ...]]
    loads: tuple[float, ...]
    watermarks: tuple[float, ...]
    token_budgets: tuple[int, ...]
    slo: dict[str, float]
    held_out: tuple[str, ...]
    engines: dict[str, Engine]
    workloads: dict[str, Dataset | TraceWorkload]

    def __post_init__(self) -> None:
        tokens = self.kv_blocks * self.block_size
        require(tokens == self.capacity_tokens, "panel.capacity_tokens", self.capacity_tokens, f"{tokens} (all blocks)")
        known = {*self.workloads, *self.engines}
        require(set(self.held_out) <= known, "panel.held_out", self.held_out, "a list of workloads and engines")
        for engine in self.engines.values():
            run = set(engine.workloads)
            require(run <= set(self.workloads), f"{engine.name}.workloads", engine.workloads, "a list of workloads")
        shared = set(self.seeds["choose"]) & set(self.seeds["compare"])
        require(not shared, "panel.seeds", self.seeds, "two sets without a common seed")


@cache
def panel() -> Panel:
    """Return the panel of `panel.json`."""
    fields = read_object(Path(__file__).with_name("panel.json"))
    workloads: dict[str, Dataset | TraceWorkload] = {}
    for entry in fields["workloads"]:
        workloads[entry["name"]] = TraceWorkload(**entry) if "trace" in entry else Dataset.from_dict(entry)
    for key in ("loads", "watermarks", "token_budgets", "held_out"):
        fields[key] = tuple(fields[key])
    seeds = {use: tuple(values) for use, values in fields["seeds"].items()}
    engines = []
    for entry in fields["engines"]:
        loads = None if (given := entry.get("loads")) is None else tuple(given)
        engines.append(Engine(**entry | {"workloads": tuple(entry["workloads"]), "loads": loads}))
    return Panel(**fields | {"workloads": workloads, "seeds": seeds, "engines": {each.name: each for each in engines}})


def dataset_names() -> tuple[str, ...]:
    """Return the names of the fixed synthetic datasets."""
    return tuple(name for name, workload in panel().workloads.items() if isinstance(workload, Dataset))


@checked
def dataset(name: str) -> Dataset:
    """Return a synthetic dataset by name: one of `dataset_names`, or any p<prompt>d<output> of constant lengths.

    Raises
    ------
    WaitCoreError
        If there is none of that name; the message gives the nearest one.

    """
    found = panel().workloads.get(name)
    if isinstance(found, Dataset):
        return found
    if match := _CONSTANT_NAME.fullmatch(name):
        prompt, output = (Constant(int(length)) for length in match.groups())
        phase = Phase(0.0, (Component(name, 1.0, prompt, output),))
        return Dataset(name, f"one type, prompt {prompt.value}, output {output.value}", Poisson(), (phase,))
    if isinstance(found, TraceWorkload):
        raise WaitCoreError(f"dataset: {name!r} is a recorded trace ({found.trace}); give the path of its file")
    near = difflib.get_close_matches(name, dataset_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise WaitCoreError(f"dataset: {name!r} is unknown; {hint}known: {', '.join(dataset_names())}, p<prompt>d<output>")

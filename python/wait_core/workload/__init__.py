"""The arrivals: requests with their times and lengths, sampled from a named dataset or read from a trace.

Deliberately absent: how they are served, and what a policy learns about them beyond `Hints`.
"""

from wait_core.workload.datasets import Dataset, dataset, dataset_names, panel
from wait_core.workload.requests import Follows, Hints, PrefixBlocks, Requests, offered, replayed, sampled
from wait_core.workload.traces import Trace, TraceError, load, write_mooncake
from wait_core.workload.traffic import Traffic

__all__ = [
    "Dataset",
    "Follows",
    "Hints",
    "PrefixBlocks",
    "Requests",
    "Trace",
    "TraceError",
    "Traffic",
    "dataset",
    "dataset_names",
    "load",
    "offered",
    "panel",
    "replayed",
    "sampled",
    "write_mooncake",
]

"""Named synthetic datasets: what to sample, never the samples.

A `Dataset` says how lengths and arrivals are distributed; the simulator samples it from a seed, so that the same seed
gives the same requests on every machine. `Dataset.to_json` is what the simulator reads. The fixed datasets are in
`panel.json`, with everything else that the panel of the quality claims fixes; `dataset` finds them by
name, and reads any `p<prompt>d<output>` (p630d20) as one type of constant lengths.

How the lmsys population is made: the paper (arXiv 2504.11320) publishes, for lmsys-chat-1m with both lengths below
500, means of 58.6 and 147.3, medians of 21 and 116, 31 % of outputs at most 50 and 14 % above 300; its table of M*
gives E[A] = E[(l' + 1)(l + l'/2)] = 28,172. The prompt is the clipped log-normal with that median and mean. The output
is independent of it (the measured correlation is 0.04) and is the histogram nearest to uniform within the published
quantiles (least relative entropy) whose mean is 147.3 and whose second moment gives that E[A].

multi-turn is a closed loop of conversations behind one system prompt, for prefix caching; its round numbers are chosen,
not measured (see `Conversations` for what they mean). The panel runs it on an engine that keeps a prefix cache.
"""

from wait_core.workload.datasets.definition import Component, Conversations, Dataset, Phase
from wait_core.workload.datasets.distributions import (
    Arrivals,
    Constant,
    Distribution,
    Gamma,
    Histogram,
    LogNormal,
    Mmpp,
    Poisson,
)
from wait_core.workload.datasets.fixed import Engine, Panel, TraceWorkload, dataset, dataset_names, panel

__all__ = [
    "Arrivals",
    "Component",
    "Constant",
    "Conversations",
    "Dataset",
    "Distribution",
    "Engine",
    "Gamma",
    "Histogram",
    "LogNormal",
    "Mmpp",
    "Panel",
    "Phase",
    "Poisson",
    "TraceWorkload",
    "dataset",
    "dataset_names",
    "panel",
]

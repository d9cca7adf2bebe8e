"""A plan's verdict in sentences: which inequality fails, what would make it hold, and where to be careful."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wait_core.planning.thresholds import WaitThresholds
    from wait_core.simulation.trial import Expected, SaturatedRate
    from wait_core.workload import Traffic

GROWS = 1.5
"""Latency has not settled if it grows by more than this from one half of a run to the other."""


def reasons(rate: float, limit: SaturatedRate, wait: WaitThresholds) -> tuple[str, ...]:
    """Why the engine does not keep up: each inequality that fails, in a sentence."""
    what = {"memory": "memory", "max-running": "max_num_seqs", "token-budget": "the token budget"}
    most = limit.request_rate
    first = (
        f"rate < saturated rate fails: {rate:.4g}/s against {most:.4g}/s, off by {rate - most:.4g}/s"
        f" ({what[limit.binding]} binds); holds at {most / rate:.4f} times the rate or less"
    )
    return first, *map(str, wait.violations)


def warnings(workload: Traffic, limit: SaturatedRate, experience: Expected) -> tuple[str, ...]:
    """Where the figures of a plan are less certain than they look, a sentence each."""
    found = []
    share = workload.rate / limit.request_rate
    if 0.9 < share < 1:
        found.append(
            f"at {share:.0%} of the saturated rate: queues settle slowly, and delays differ from run to run and grow"
            " with the number of requests"
        )
    if experience.mean.growth > GROWS:
        found.append(
            f"latency has not settled: it is {experience.mean.growth:.2g} times as long in the second half of the"
            f" {experience.num_prompts:,} requests as in the first"
        )
    if workload.dispersion is not None and workload.dispersion > 3:
        found.append(
            f"arrivals are {workload.dispersion:.1f} times as variable as a Poisson stream: what is expected holds for"
            " bursts like these"
        )
    return tuple(found)

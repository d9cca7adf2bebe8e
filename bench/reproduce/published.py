"""What arXiv 2504.11320 prints: mean latency in s with its spread, and the largest stable rate in requests/s."""

from __future__ import annotations

LATENCY: dict[tuple[str, float], dict[str, tuple[float, float | None]]] = {
    ("single", 22): {"prefill-first": (18.23, 2.74), "sarathi": (1.85, 0.33), "wait": (1.03, 0.04)},
    ("single", 23): {"prefill-first": (26.78, 3.35), "sarathi": (5.08, 1.72), "wait": (1.29, 0.10)},
    ("two-type", 22): {"prefill-first": (56.7, 2.2), "sarathi": (4.06, 1.66), "nested-wait": (2.36, 0.57)},
    ("two-type", 23): {"prefill-first": (80.3, 2.4), "sarathi": (8.41, 1.74), "nested-wait": (5.66, 1.88)},
    ("long", 4.5): {"prefill-first": (53.8, None), "sarathi": (41.7, None), "wait": (32.3, None)},
    ("long", 4.0): {"sarathi": (30.2, None), "wait": (26.4, None)},
}
PREEMPTED = {("long", 4.0): {"sarathi": 0.0288, "wait": 0.0}}
STABLE = {
    "single": {"prefill-first": 19, "sarathi": 22, "wait": 23},
    "two-type": {"prefill-first": 18, "sarathi": 21, "nested-wait": 22},
}
MEMORY = {50: 34_377, 60: 55_758, 70: 100_327, 80: 250_509}
"""M* in KV tokens of the lmsys population, by rate."""
CROSSING = 74.1
"""Rate at which M* reaches C."""
TOKEN_ITERATIONS = 28_172.0
"""E[A] of the lmsys population: mean KV tokens x iterations of a request."""
DECODE_ONLY_GAIN = (0.45, 0.55)
"""By how much WAIT's latency is below vLLM's in decode-only."""

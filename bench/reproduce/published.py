"""What arXiv 2504.11320 prints, and what its authors' notes add.

Latencies are means in s with their spread, rates are requests/s. The paper's table of repeated runs gives 18.23 ± 2.74
and so on for 20 runs; the notes list the same means at 22 and 23/s as one run of 5,000 requests each, and know of no
repeated runs that can be traced. The spreads are shown as printed.

Authors' notes: github.com/Luoxiaogan/vidur_or, docs/progress/2026_04_26_single_type_reproduction_provenance.md,
2026_05_07_single_type_l2_cap256_reproduction.md, 2026_04_07_gpu_validation_reviewer2.md,
2026_04_12_sglang_weakened_baseline_full_rates_win.md; papers/appendix_b_additional.tex.
"""

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

NOTES = {
    22: {"prefill-first": 18.227, "sarathi": 1.853, "wait": 1.025},
    23: {"prefill-first": 26.783, "sarathi": 5.076, "wait": 1.292},
}
"""Latency (s) of p512d20 in the authors' database: Llama-3-8B, N = 5,000, the figure's rows."""
RERUN = {
    22: {"sarathi": 0.9847, "wait": 0.9505},
    23: {"sarathi": 1.2548, "wait": 1.2062},
    24: {"sarathi": 2.6675, "wait": 1.7354},
}
"""The same on Llama-2-7B, rerun by the authors: N = 5,000, mean over all requests, Sarathi with chunk 512, cap 256."""
FIGURE_A = (0.27611, 1.152e-5)
"""d0 (s) and d1 (s per KV token) fitted to the time of whole batches, prompt 256 and output 20, up to 128 requests."""
SGLANG_GAIN = 0.297
"""Mean reduction of the latency by WAIT over the rates 1 to 15/s, p512d20 on SGLang 0.5.7 and an A100-80GB."""
SGLANG_BASELINE = (
    0.29507, 0.32555, 0.38752, 0.44038, 0.51218, 0.6458, 0.90021, 1.30347, 1.6647, 3.88447, 5.92307, 11.31376, 14.3487,
    15.67962, 19.16207,
)  # fmt: skip
"""Latency (s) of its baseline at 1, 2, …, 15/s: chunk 256, at most 8 prompts prefill at a time, 500 requests a rate."""
SGLANG_WAIT = (
    0.27857, 0.30359, 0.35191, 0.4007, 0.46851, 0.55463, 0.74294, 0.8909, 1.12158, 1.65477, 2.44059, 4.60691, 6.99844,
    8.85543, 11.30356,
)  # fmt: skip
"""The same of WAIT: tl 21, chunk 384, the native rule while fewer than 10 requests are there."""
SGLANG_LMSYS = {
    0.1: (40, (175, 350, 500)),
    0.2: (50, (210, 420, 500)),
    0.3: (60, (200, 400, 500)),
    0.4: (70, (175, 350, 500)),
    0.5: (70, (200, 400, 500)),
    0.6: (70, (175, 350, 500)),
    0.7: (95, (250, 500)),
}
"""tl and segments of the real-data runs on SGLang, by rate."""
SGLANG_LMSYS_GAIN = 0.036
"""Their mean reduction of the latency."""

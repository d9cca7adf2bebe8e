"""GPUs and models by name: iteration-time law, KV cache and engine defaults.

`engine` makes a `Deployment` from the kernel times of the package aiconfigurator-core (extra `hardware`) and the
model's own configuration; `shipped` has those that need no package; `iteration_time` finds a law by its name or in a
file, and `calibration` fits one to what an engine measured. Only package.py imports the package. Deliberately absent:
what traffic needs of a GPU (`wait_core.planning`), pipeline and expert parallelism, speculative decoding, layers that
keep a state.
"""

from wait_core.hardware.assemble import engine
from wait_core.hardware.deployment import CacheGroup, Deployment, Memory, Region
from wait_core.hardware.iteration_time import A100, iteration_time, kv_blocks_of, kv_bytes_of, kv_cache_of
from wait_core.hardware.shipped_data import shipped

__all__ = [
    "A100",
    "CacheGroup",
    "Deployment",
    "Memory",
    "Region",
    "engine",
    "iteration_time",
    "kv_blocks_of",
    "kv_bytes_of",
    "kv_cache_of",
    "shipped",
]

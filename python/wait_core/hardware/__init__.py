"""GPUs and models by name: iteration-time law, KV cache and engine defaults of what people run.

`engine` makes a `Deployment` from the kernel times of the package aiconfigurator-core (`pip install
'wait-core[hardware]'`) and the model's own configuration; `shipped` has those that need no package. Only package.py
imports it. Deliberately absent: pipeline and expert parallelism, speculative decoding, layers that keep a state.
"""

from wait_core.hardware.assemble import engine
from wait_core.hardware.deployment import CacheGroup, Deployment, Memory, Region
from wait_core.hardware.offers import Offer, offers
from wait_core.hardware.shipped_data import shipped

__all__ = ["CacheGroup", "Deployment", "Memory", "Offer", "Region", "engine", "offers", "shipped"]

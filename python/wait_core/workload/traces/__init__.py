"""Request traces: arrival times, prompt lengths and output lengths, from common formats.

`load` reads a file, detecting its format by content; `write_mooncake` writes one. Times are integer nanoseconds from
the first request on; they never pass through a float, so that seven decimals in the file are seven decimals here.

========== ================================== =======================================================
format     file                               what is kept
========== ================================== =======================================================
mooncake   Mooncake jsonl, Qwen-Bailian jsonl arrivals (ms; Qwen-Bailian: s), lengths, hash ids, type, chats
burstgpt   BurstGPT csv                       arrivals (s), lengths, class "Model, Log Type"
azure      Azure LLM inference csv, 2023/2024 arrivals (date and time), lengths
vidur      Vidur csv                          lengths, arrivals (s) where `arrived_at` is present
words      LMSYS-Chat word counts csv         lengths in words
vllm       vllm bench custom jsonl            lengths, counted from the prompt text
sharegpt   ShareGPT json                      lengths of the first turn and of its reply, counted from the text
========== ================================== =======================================================
"""

from wait_core.workload.traces.fields import TraceError
from wait_core.workload.traces.json_formats import write_mooncake
from wait_core.workload.traces.loading import FORMATS, detect, load
from wait_core.workload.traces.sharing import Sharing, prefix_sharing
from wait_core.workload.traces.trace import Trace

__all__ = ["FORMATS", "Sharing", "Trace", "TraceError", "detect", "load", "prefix_sharing", "write_mooncake"]

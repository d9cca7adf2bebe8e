"""Logs of a running engine, and their readers: the decision log, its replay, the step log.

Deliberately absent: the writers inside vLLM (`wait_core.vllm`), and the reading of a log as a workload
(`wait_core.workload.traces`).
"""

from wait_core.logs.decision_log import DecisionLog, LoggedCore
from wait_core.logs.replay import Replay, replay
from wait_core.logs.step_log import Steps

__all__ = ["DecisionLog", "LoggedCore", "Replay", "Steps", "replay"]

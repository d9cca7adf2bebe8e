"""The real engine in this process, under a clock that passes as it takes processor time.

vLLM's ``EngineCore`` with its model, on the CPU, without a server before it. What other processes take of the machine
is no time here, nor is what the clients do: the clock stands still between two steps, and where nothing runs it is put
forward to the next arrival. The adapter reads this clock too, so a stated time to first token is one of this clock.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from engine import ENVIRONMENT
from serving import Serving

from wait_core.vllm import clock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from serving import Call

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


class Engine(Serving):
    """One engine; the adapter's clock in this process is its own from then on.

    Parameters
    ----------
    model
        The model's configuration, as Hugging Face writes it; the weights are random.
    options
        vLLM's ``EngineArgs``.
    folder
        An empty folder, for the model's configuration.
    """

    def __init__(self, model: Mapping[str, Any], options: Mapping[str, Any], folder: Path) -> None:
        from vllm import EngineArgs
        from vllm.v1.core.sched.output import SchedulerOutput
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor

        (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
        arguments = EngineArgs(model=str(folder), load_format="dummy", skip_tokenizer_init=True, **options)
        config = arguments.create_engine_config()
        super().__init__(config.model_config.max_model_len)
        self._offset_ns = -time.process_time_ns()
        self._stopped_ns: int | None = 0  # what the clock says between two steps
        clock.now_ns = self._time_ns
        self.core = EngineCore(config, Executor.get_class(config), log_stats=True)
        self._nothing = self._scheduled = SchedulerOutput.make_empty()
        schedule = self.core.scheduler.schedule

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._scheduled = schedule(*args, **kwargs)
            return self._scheduled

        self.core.scheduler.schedule = noted

    def _time_ns(self) -> int:
        return time.process_time_ns() + self._offset_ns if self._stopped_ns is None else self._stopped_ns

    @property
    def now_ns(self) -> int:
        """Processor time taken by steps so far, and the time put forward."""
        return self._time_ns()

    def wait(self, until_ns: int) -> None:
        """Put the clock forward."""
        self._stopped_ns = max(self._time_ns(), until_ns)

    def add(self, call: Call, max_tokens: int) -> None:
        """Queue a request that ends after `call.output` tokens; no arm of a comparison looks at its ``max_tokens``."""
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        most = min(call.output, max_tokens)
        params = SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True, detokenize=False)
        request = EngineCoreRequest(
            request_id=call.name,
            prompt_token_ids=list(call.prompt),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=1e-9 * self._time_ns(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.core.add_request(*self.core.preprocess_add_request(request))

    def abort(self, name: str) -> None:
        """End a request as a client that goes away does."""
        self.core.abort_requests([name])

    def step(self) -> tuple[Any, Mapping[int, Any] | None]:
        """Run one step of the engine."""
        self._offset_ns = self._time_ns() - time.process_time_ns()
        self._stopped_ns, self._scheduled = None, self._nothing  # an engine at rest schedules nothing
        outputs, executed = self.core.step()
        self._stopped_ns = self._time_ns()
        return self._scheduled, outputs if executed or outputs else None

"""Settings of the adapter, read from vLLM's own configuration."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core import Scheduler

KEY = "wait_core"


class ConfigError(ValueError):
    """A setting under ``additional_config["wait_core"]`` is wrong, or vLLM runs something the core cannot serve."""


@dataclass(frozen=True)
class Settings:
    """The object under ``additional_config["wait_core"]``.

    Keys that are not listed here go to `wait_core.Scheduler`, which checks them; those that describe the engine
    (`FROM_ENGINE`) are vLLM's to set.

    Attributes
    ----------
    policy
        Name of the policy.
    watchdog_s
        Seconds without any token scheduled, while requests wait, after which the gates open until tokens flow again;
        0 switches the watchdog off.
    use_max_tokens
        Whether the core may see ``max_tokens``. Where clients set it far above what they use, false.
    known_lengths
        Whether ``max_tokens`` is the exact output length of a request that ignores EOS and has no stop condition.
    fast_decode
        Whether steady decode skips the work that vLLM does in vain; see `wait_core.vllm.fast_decode`.
    """

    policy: str = "wait"
    watchdog_s: float = 2.0
    use_max_tokens: bool = True
    known_lengths: bool = True
    fast_decode: bool = False
    core: Mapping[str, Any] = field(default_factory=dict)


FROM_ENGINE = {
    "kv_blocks": "num_gpu_blocks_override",
    "block_size": "block_size",
    "max_num_seqs": "max_num_seqs",
    "token_budget": "max_num_batched_tokens",
    "max_model_len": "max_model_len",
    "watermark": "watermark",
    "max_queued_requests": "max_num_queued_reqs",
    "max_queued_tokens": "max_num_queued_tokens",
    "host_preempts": None,
}
"""Arguments of `wait_core.Scheduler` that follow the engine, and vLLM's name for each."""


def read(raw: object) -> Settings:
    """Check the value of ``additional_config["wait_core"]`` as far as it concerns the adapter.

    Raises
    ------
    ConfigError
        Naming the key and the value.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f'additional_config["{KEY}"] must be an object, got {raw!r}')
    own = {f.name: f.type for f in fields(Settings) if f.name != "core"}
    given: dict[str, Any] = {}
    core: dict[str, Any] = {}
    for name, value in raw.items():
        if name in FROM_ENGINE:
            option = FROM_ENGINE[name]
            how = f"set vLLM's {option} instead" if option else "it cannot be set"
            raise ConfigError(f"{KEY}.{name} = {value!r}: it follows the engine; {how}")
        (given if name in own else core)[name] = value
    for name, kind in (("policy", str), ("use_max_tokens", bool), ("known_lengths", bool), ("fast_decode", bool)):
        if name in given and not isinstance(given[name], kind):
            raise ConfigError(f"{KEY}.{name} must be of type {kind.__name__}, got {given[name]!r}")
    seconds = given.get("watchdog_s", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ConfigError(f"{KEY}.watchdog_s must be a number of seconds, 0 or more, got {seconds!r}")
    return Settings(**given, core=core)


def make_core(settings: Settings, engine: Mapping[str, Any]) -> Scheduler:
    """Build the core for an engine described by the keyword arguments `engine`.

    Raises
    ------
    ConfigError
        Where the core refuses a setting; the text is the core's.
    """
    from wait_core import Scheduler, WaitCoreError  # noqa: PLC0415  `read` works without the extension

    try:
        return Scheduler(settings.policy, **settings.core, **engine)
    except (WaitCoreError, TypeError, ValueError) as error:
        known = [f.name for f in fields(Settings)]
        near = [m for name in settings.core for m in difflib.get_close_matches(name, known, n=1)]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f'additional_config["{KEY}"]: {error}{hint}') from error

"""Settings of the adapter: vLLM's own configuration, and a file that may change while it serves."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import SETTINGS, Scheduler, WaitCoreError, __version__
from wait_core.files import FileError, read_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "wait_core"
FILE_VARIABLE = "WAIT_CORE_CONFIG_FILE"
"""Environment variable that names the settings file where ``config_file`` does not."""


class ConfigError(WaitCoreError):
    """A setting of the adapter is wrong, or vLLM runs something the core cannot serve."""


@dataclass(frozen=True)
class Settings:
    """The object under ``additional_config["wait_core"]``, and over it that in the settings file.

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
    balance_by_forecast
        Whether vLLM's data-parallel balancer sees, as the use of the KV cache, the most that the residents are expected
        to hold; nothing else reads it.
    fast_decode
        Whether steady decode skips the work that vLLM does in vain; see `wait_core.vllm.fast_decode`.
    max_wait_s
        Longest time in seconds that a request may wait for its first admission: one that is expected to wait longer
        ends when it comes, one that has waited so long ends then; none by default. A request may ask for less.
    shadow
        Decide and count, but let stock vLLM act; no request ends late.
    config_file
        JSON object of settings that override these; read again, while serving, whenever it changes.
    log_file
        Where to log every decision (JSONL); none by default.
    step_log_file
        Where to log what each step computed and how long it took (JSONL), for ``wait-core calibrate``; none by default.
    learned_file
        Where what the policy has learned of the traffic is kept over a restart (JSON); none by default.
    log_max_mb
        Size in MB (10^6 bytes) at which each of these logs ends.
    core
        What goes to the core.
    sources
        Where each value that is not a default came from.
    """

    policy: str = "adaptive"
    watchdog_s: float = 2.0
    use_max_tokens: bool = True
    known_lengths: bool = True
    balance_by_forecast: bool = False
    fast_decode: bool = False
    max_wait_s: float | None = None
    shadow: bool = False
    config_file: str | None = None
    log_file: str | None = None
    step_log_file: str | None = None
    learned_file: str | None = None
    log_max_mb: float = 256.0
    core: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


OWN = tuple(f.name for f in fields(Settings) if f.name not in {"core", "sources"})
"""Settings of the adapter itself."""

AT_START = ("config_file", "log_file", "step_log_file", "learned_file", "log_max_mb", "fast_decode")
"""Those of them that stay as they are at the start, and so do not belong into the settings file."""

FROM_ENGINE = {
    "kv_blocks": "num_gpu_blocks_override",
    "block_size": "block_size",
    "kv_groups": None,
    "prefix_caching": None,
    "num_speculative_tokens": "speculative_config",
    "num_lookahead_tokens": "speculative_config",
    "long_prefill_token_threshold": "long_prefill_token_threshold",
    "max_num_seqs": "max_num_seqs",
    "token_budget": "max_num_batched_tokens",
    "max_model_len": "max_model_len",
    "watermark": "watermark",
    "max_queued_requests": "max_num_queued_reqs",
    "max_queued_tokens": "max_num_queued_tokens",
    "host_preempts": None,
}
"""Arguments of `wait_core.Scheduler` that follow the engine, and vLLM's name for each; None where it has none."""


def load(additional: object) -> Settings:
    """Read the settings at the start: the value of ``additional_config["wait_core"]``, and the file if one is named.

    Raises
    ------
    ConfigError
        Naming the key and the value, or the file that cannot be read.
    """
    path = read(additional).config_file or os.environ.get(FILE_VARIABLE)
    return read(additional, None if path is None else read_file(path), path)


def of_rank(path: str, rank: int) -> Path:
    """Return where one data-parallel rank writes: rank 0 to `path`, the others to names of their own beside it.

    `rank` is vLLM's index of the engine; its size and rank are 1 and 0 in every engine of a dense model.
    """
    own = Path(path)
    return own if rank == 0 else own.with_name(f"{own.stem}.rank{rank}{own.suffix}")


def read_file(path: str) -> object:
    """Parse the settings file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not a JSON object.
    """
    try:
        return read_object(path)
    except FileError as error:  # which names the file itself
        raise ConfigError(f"settings file {error}") from error
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error}") from error


def read(additional: object, in_file: object = None, path: str | None = None) -> Settings:
    """Check settings as far as they concern the adapter; those `in_file`, read from `path`, override `additional`.

    Raises
    ------
    ConfigError
        Naming the key and the value.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for raw, where in ((additional, f'additional_config["{KEY}"]'), (in_file, f"settings file {path}")):
        if raw is in_file and path is None:
            continue
        if not isinstance(raw, dict):
            raise ConfigError(f"{where} must be an object, got {shown(raw)}")
        for name, value in raw.items():
            if name == KEY:
                raise ConfigError(f'{where}: its settings stand in it by themselves, not under "{KEY}"')
            if name in FROM_ENGINE:
                option = FROM_ENGINE[name]
                how = f"set vLLM's {option} instead" if option else "it cannot be set"
                raise ConfigError(f"{where}: {name} = {shown(value)}: it follows the engine; {how}")
            if raw is in_file and name in AT_START:
                raise ConfigError(f"{where}: {name} = {shown(value)}: it is fixed at the start; set it beside the file")
            merged[name] = value
            sources[name] = "additional_config" if raw is additional else f"file {path}"
    for name, kind in (
        ("policy", str),
        ("use_max_tokens", bool),
        ("known_lengths", bool),
        ("balance_by_forecast", bool),
        ("shadow", bool),
        ("fast_decode", bool),
    ):
        if name in merged and not isinstance(merged[name], kind):
            raise ConfigError(f"{KEY}.{name} must be of type {kind.__name__}, got {shown(merged[name])}")
    for name in ("config_file", "log_file", "step_log_file", "learned_file"):
        if not isinstance(merged.get(name), str | None):
            raise ConfigError(f"{KEY}.{name} must be a path, got {shown(merged[name])}")
    for name, unit in (("watchdog_s", "seconds"), ("log_max_mb", "megabytes"), ("max_wait_s", "seconds")):
        number = merged.get(name, 0.0)
        if number is None and name == "max_wait_s":
            continue
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
            raise ConfigError(f"{KEY}.{name} must be a number of {unit}, 0 or more, got {shown(number)}")
    if path is not None:
        sources.setdefault("config_file", f"environment {FILE_VARIABLE}")
        merged["config_file"] = path
    own = {name: value for name, value in merged.items() if name in OWN}
    return Settings(**own, core={k: v for k, v in merged.items() if k not in own}, sources=sources)


def not_writable(setting: str, path: str, error: OSError) -> ConfigError:
    """Return the error of a log that cannot be begun, and what to do about it."""
    why = error.strerror or error
    return ConfigError(
        f"{KEY}.{setting} = {path!r}: {why}: name a file in a folder that vLLM may write, or leave it out"
    )


def make_core(settings: Settings, engine: Mapping[str, Any]) -> Scheduler:
    """Build the core for an engine described by the keyword arguments `engine`.

    Raises
    ------
    ConfigError
        Where the core refuses a setting; the text is the core's.
    """
    for name in settings.core:
        # The core knows its own names; a slip may also be meant for one of the adapter's.
        if name not in SETTINGS and (near := difflib.get_close_matches(name, [*OWN, *SETTINGS], n=1)):
            where = settings.sources.get(name, KEY)
            raise ConfigError(f'{where}: unknown setting "{name[:60]}"; did you mean "{near[0]}"?')
    core = {name: value for name, value in settings.core.items() if not (settings.shadow and name == "late")}
    try:
        return Scheduler(settings.policy, **core, **engine)
    except (TypeError, ValueError) as error:  # a WaitCoreError is a ValueError
        raise ConfigError(f"{KEY}: {error}") from error


def describe(settings: Settings, core: Scheduler, engine: Mapping[str, Any]) -> str:
    """Return the settings in force as a table: name, value, and where the value came from."""
    in_force = core.settings
    rows = [("policy", settings.policy, settings.sources.get("policy", "default"))]
    rows.append(("capacity", f"{in_force['kv_blocks'] * in_force['block_size']:,} tokens", "vLLM"))
    rows += [(name, _shown(getattr(settings, name)), settings.sources.get(name, "default")) for name in OWN[1:]]
    for name, value in in_force.items():
        if name == "policy":
            continue
        source = "vLLM" if name in engine else settings.sources.get(name, "default")
        if name == "thresholds" and value is None and core.thresholds:
            value, source = [round(n, 3) for n in core.thresholds], "planned"  # noqa: PLW2901
        rows.append((name, _shown(value), source))
    head = f"wait-core {__version__} " + ("watches (shadow mode: stock vLLM acts)" if settings.shadow else "schedules")
    width = max(len(name) for name, _, _ in rows)
    shown = max(len(value) for _, value, _ in rows)
    return "\n".join([head, *(f"  {name:{width}}  {value:{shown}}  {source}" for name, value, source in rows)])


def _shown(value: object) -> str:
    text = "-" if value is None or value == [] else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"

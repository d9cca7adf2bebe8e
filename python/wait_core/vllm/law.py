"""The iteration-time law that the core learns from the engine's own steps: written to the log and to /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from wait_core._core import iteration_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = init_logger(f"vllm.{__name__}")  # vLLM configures the loggers under its own name only

CHANGED = 0.1
"""Share by which a step has to take longer or less than was said before it is said again."""
KV = 1_000
"""Tokens of context of each decode in the steps that show the law."""


def examples(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the steps that show a law: one decode, all seats, the longest piece of a prompt."""
    seats, budget = settings["max_num_seqs"], settings["token_budget"]
    return {
        "one decode": {"decodes": 1, "decode_kv": KV},
        f"{seats} decodes": {"decodes": seats, "decode_kv": seats * KV},
        f"a prompt of {budget} tokens": {"chunks": [(budget, 0)]},
    }


class LearnedLaw:
    """Looks at what the core has learned.

    Attributes
    ----------
    figures
        For /metrics: the mean relative error (``error``), the steps learned from (``observations``), whether the law
        decides (``used``), and the ``seconds`` of three steps under it; empty where the policy learns none.
    decides
        The law, where it decides.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.decides: dict[str, Any] | None = None
        self._said: dict[str, float] = {}

    def look(self, core: Any) -> None:
        """Look at the law; say when it comes to decide, has changed, or decides no more."""
        learned = core.iteration_time
        self.decides = learned["law"] if learned and learned["used"] else None
        if learned is None:
            self.figures = {}
            return
        self.figures = {name: learned[name] for name in ("error", "observations", "used")}
        seconds: dict[str, float] = {}
        if learned["law"] is not None:
            steps = examples(core.settings)
            seconds = {name: iteration_seconds(learned["law"], **step) for name, step in steps.items()}
            self.figures["seconds"] = dict(zip(("decode", "decodes", "prompt"), seconds.values(), strict=True))
        self._say(seconds if learned["used"] else {})

    def _say(self, seconds: dict[str, float]) -> None:
        if seconds.keys() == self._said.keys() and not any(
            abs(value - self._said[name]) > CHANGED * self._said[name] for name, value in seconds.items()
        ):
            return
        if seconds:
            logger.info(
                "wait-core decides by the iteration-time law of %d of this engine's steps (mean error %.1f %%): %s",
                self.figures["observations"],
                100 * self.figures["error"],
                ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in seconds.items()),
            )
        else:
            logger.info("wait-core no longer decides by the iteration-time law that it has learned")
        self._said = seconds

"""The look of every figure: colours, lines, sizes, and the drawing surface.

Colours are Okabe and Ito's, distinguishable with any colour vision. A known policy has the same colour, line and marker
in every figure.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.extras import install

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INK = "#333333"
LIMIT = "#8a8a8a"
_STYLE = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.dpi": 150.0,
    "savefig.dpi": 150.0,
}
# Colour, line, marker. The default policy stands out in blue; stock vLLM is vermilion.
_KNOWN: dict[str, tuple[str, Any, str]] = {
    "vllm": ("#D55E00", "-", "o"),
    "wait": ("#56B4E9", "-", "s"),
    "adaptive": ("#0072B2", "-", "D"),
    "nested-wait": ("#009E73", "-", "^"),
    "sarathi": ("#E69F00", "-", "v"),
    "prefill-first": ("#CC79A7", "-", "P"),
    "clairvoyant": ("#000000", (0, (4, 2)), "X"),
}
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 1))
_OTHERS: tuple[tuple[str, Any, str], ...] = (
    ("#0072B2", _DASHED, "d"),
    ("#E69F00", _DASHED, ">"),
    ("#009E73", _DASHED, "h"),
    ("#CC79A7", _DASHED, "p"),
    ("#56B4E9", _DASHED, "<"),
    ("#D55E00", _DASHED, "*"),
    ("#0072B2", _DOTTED, "o"),
    ("#E69F00", _DOTTED, "s"),
    ("#009E73", _DOTTED, "^"),
    ("#CC79A7", _DOTTED, "v"),
)


def styles(policies: Iterable[str]) -> dict[str, tuple[str, Any, str]]:
    """Return colour, line and marker by policy; names that are not known get the unused ones in their order."""
    names = list(dict.fromkeys(policies))
    others = [name for name in names if name not in _KNOWN]
    given = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}
    return {name: _KNOWN.get(name) or given[name] for name in names}


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a picture that could not be drawn, before the work that it is to show.

    Raises
    ------
    WaitCoreError
        If matplotlib is not installed, or the name promises another format than PNG.

    """
    if not drawable():
        raise WaitCoreError(f"a picture needs matplotlib: {install('plot')}")
    if Path(path).suffix.lower() not in {"", ".png"}:
        raise WaitCoreError(f"{os.fspath(path)}: pictures are PNG files, and their names end in .png")


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def new_figure(path: str | os.PathLike[str], size: tuple[float, float]) -> Iterator[Any]:
    """Yield a figure in our style, and save it."""
    if not drawable():
        check_picture(path)
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and most uses draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        # Without the date and version that matplotlib adds, the same figures give the same file.
        figure.savefig(path, format="png", metadata={"Software": None})


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis 0.5, 1, 2, 5, 10 rather than with powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

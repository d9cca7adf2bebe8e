"""The requests of a run as a table of Polars or Arrow: one row a request, units in the names of the columns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from wait_core._core import WaitCoreError, __version__
from wait_core.extras import install

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wait_core import _core

NEVER = np.iinfo(np.uint64).max
"""How a run records a time at which nothing happened."""


def columns(run: _core.Run) -> dict[str, np.ma.MaskedArray[Any, Any]]:
    """Return the columns of the table, shape (requests,); masked where a request never got that far."""
    arrival, admitted, first_token, finished = (
        np.ma.masked_equal(times, NEVER, copy=False)
        for times in (run.arrival_ns, run.admitted_ns, run.first_token_ns, run.finished_ns)
    )
    output = run.output
    # A request that was refused before its first token has no time per token, nor has one with a single token.
    decodes = np.ma.masked_equal(output.astype(np.float64) - 1.0, 0.0, copy=False)
    return {
        "arrival_ns": arrival,
        "admitted_ns": admitted,
        "first_token_ns": first_token,
        "finished_ns": finished,
        "predicted_wait_ns": np.ma.masked_equal(run.predicted_wait_ns, NEVER, copy=False),
        "prompt_tokens": np.ma.asarray(run.prompt),
        "output_tokens": np.ma.asarray(output),
        "preemptions": np.ma.asarray(run.preemptions),
        "queue_s": (admitted - arrival) * 1e-9,
        "ttft_s": (first_token - arrival) * 1e-9,
        "tpot_s": (finished - first_token) * 1e-9 / decodes,
        "e2el_s": (finished - arrival) * 1e-9,
    }


def to_polars(run: _core.Run) -> Any:
    """Return a `polars.DataFrame`.

    Raises
    ------
    WaitCoreError
        If polars is not installed.

    """
    try:
        import polars as pl  # noqa: PLC0415  an extra
    except ImportError:
        raise WaitCoreError(f"to_polars needs polars: {install('polars')}") from None
    table = pl.DataFrame({name: column.data for name, column in columns(run).items()})
    masks = {name: np.ma.getmaskarray(column) for name, column in columns(run).items() if np.ma.is_masked(column)}
    return table.with_columns(pl.when(pl.lit(pl.Series(~mask))).then(name).alias(name) for name, mask in masks.items())


def to_arrow(run: _core.Run, about: Mapping[str, Any]) -> Any:
    """Return a `pyarrow.Table` whose metadata has `about`, as JSON, under the key wait_core.

    Raises
    ------
    WaitCoreError
        If pyarrow is not installed.

    """
    try:
        import pyarrow as pa  # noqa: PLC0415  an extra
    except ImportError:
        raise WaitCoreError(f"to_arrow needs pyarrow: {install('arrow')}") from None
    arrays = {name: pa.array(column.data, mask=np.ma.getmaskarray(column)) for name, column in columns(run).items()}
    described = json.dumps({"version": __version__, **about}, default=str)
    return pa.table(arrays, metadata={"wait_core": described})

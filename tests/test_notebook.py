"""docs/paper.ipynb: its cells run, and print what is stored in it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "paper.ipynb"


def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: Any) -> list[str]:
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return ["".join(output.text for output in cell.outputs if output.output_type == "stream") for cell in cells]


def test_the_notebook_was_run_from_top_to_bottom() -> None:
    notebook = stored()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(cells) > 8
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of the client and its kernel
def test_its_cells_print_what_is_stored() -> None:
    notebook = stored()
    again = copy.deepcopy(notebook)
    NotebookClient(
        again, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    assert printed(again) == printed(notebook)

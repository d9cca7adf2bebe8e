"""The `wait-core` command: one file a sub-command, its options and the wording of its results.

app.py runs them, arguments.py has the types of option values, output.py is about terminals. Deliberately absent:
everything that a program may call too, which is in the package of its subject.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # of `typing`, which is slow to import: until `main` runs, Ctrl-C prints a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; `wait-core --help` lists them."""
    try:
        # Imported here, so that Ctrl-C is answered the same way while modules load.
        from wait_core.cli.app import run  # noqa: PLC0415

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt as interrupt:
        print(f"wait-core: {str(interrupt) or 'interrupted, nothing was written'}", file=sys.stderr)
        return 130

"""What no test may depend on."""

import os

# The width of the terminal that runs them: pytest-xdist sets it for its workers.
os.environ.pop("COLUMNS", None)

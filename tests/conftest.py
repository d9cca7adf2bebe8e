"""What no test may depend on."""

import os

# The width of the terminal that runs them, which workers of pytest-xdist may inherit.
os.environ.pop("COLUMNS", None)

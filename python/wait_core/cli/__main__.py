"""`python -m wait_core.cli`."""

import sys

from wait_core.cli import main

sys.exit(main())

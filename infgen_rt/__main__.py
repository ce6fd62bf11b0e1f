"""`python -m infgen_rt` is the command `infgen-rt`."""

import sys

from .cli import main

sys.exit(main())

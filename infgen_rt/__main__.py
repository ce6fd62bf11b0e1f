"""`python -m infgen_rt` is the command `infgen-rt`."""

import sys

from infgen_rt.cli.main import main

sys.exit(main())

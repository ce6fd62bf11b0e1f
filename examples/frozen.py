"""The command line as an app that needs no Python: `pyinstaller examples/frozen.py`, then `dist/frozen/frozen --help`.

An app of your own needs nothing more either. PyInstaller finds this package's hooks by itself.
"""

import sys

from infgen_rt.cli import main

sys.exit(main())

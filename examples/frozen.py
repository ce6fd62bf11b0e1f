"""The command line as an app that needs no Python.

pyinstaller examples/frozen.py
dist/frozen/frozen --help

An app of your own is built in the same way. PyInstaller finds the hooks of this package by itself.
"""

import sys

from infgen_rt.cli import main

sys.exit(main())

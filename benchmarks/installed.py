"""Importing this first makes scripts measure the installed package, not the sources beside them.

The checkout's folder holds no compiled module; where PYTHONPATH or the working directory put it on
the path, `import gralora` would find the sources.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

"""`python -m t2i`, and `accelerate launch t2i ...` from the repository root.

Accelerate and torchrun start the FOLDER t2i/ as a script. Python then puts that folder first on the path, where `data`,
`nn` or `config` would hide other packages' modules of those names; the folder above it belongs there instead.
"""

import os
import sys

if not __package__:
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _here]
    sys.path.insert(0, os.path.dirname(_here))

from t2i.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

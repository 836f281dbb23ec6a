"""What computes, and in what."""

from __future__ import annotations

from t2i.cli import complete
from t2i.cli.options import section, together

option = section("Machine")
options = together(
    option(
        "--device",
        metavar="NAME",
        shell_complete=complete.devices,
        help="cpu, cuda, cuda:1, mps. Default: the fastest there is.",
    ),
    option(
        "--dtype",
        metavar="NAME",
        shell_complete=complete.dtypes,
        help="float32, float16 or bfloat16. Default: float32 on a CPU.",
    ),
    option("--batch-size", type=int, help="Images drawn at once; changes speed and memory, not the pictures."),
)

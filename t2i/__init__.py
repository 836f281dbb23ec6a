"""t2i: text-to-image and diffusion models, from theory to picture.

    from t2i import load

    model = load("mini")  # the embedded model
    model("a horse in Van Gogh style", seed=7, num_images=4)[0].save("horse.png")

Names are resolved when they are first used (PEP 562), so that importing t2i imports nothing heavy.
"""

from typing import TYPE_CHECKING, Any

from t2i.version import __version__

if TYPE_CHECKING:
    from t2i import errors as errors
    from t2i.api import load as load

__all__ = ["__version__", "errors", "load"]

_LAZY = {
    "errors": ("t2i.errors", None),
    "load": ("t2i.api", "load"),
}


def __getattr__(name: str) -> Any:
    """Import what a public name stands for, the first time it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 't2i' has no attribute {name!r}")
    from importlib import import_module
    from operator import attrgetter

    module, path = _LAZY[name]
    value = import_module(module)
    return value if path is None else attrgetter(path)(value)


def __dir__() -> list[str]:
    return sorted(__all__)

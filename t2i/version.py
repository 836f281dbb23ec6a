"""The version of this package, for those that may not import the package's own names."""

from __future__ import annotations

__version__ = "0.1.0"

"""A growth-and-prune engine on PyTorch. ``grow.fit`` is the short way in; everything else is imported from its own module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grow.fitting import fit as fit
    from grow.retraining import retrain as retrain

__all__ = ["fit", "retrain"]

_HOMES = {"fit": "grow.fitting", "retrain": "grow.retraining"}


def __getattr__(name: str) -> object:
    """Import the engine when it is asked for: a command line that does not train must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'grow' has no attribute {name!r}")

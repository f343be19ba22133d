"""A growth-and-prune engine on PyTorch. ``grow.fit`` is the short way in; everything else is imported from its own module."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grow.fitting import fit as fit

__all__ = ["fit"]


def __getattr__(name: str) -> object:
    """Import the engine when it is asked for: a command line that does not train must not wait for torch."""
    if name == "fit":
        from importlib import import_module

        return import_module("grow.fitting").fit
    raise AttributeError(f"module 'grow' has no attribute {name!r}")

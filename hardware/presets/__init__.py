"""Machines that are well known, so that a search on a laptop can plan for a cluster. Whatever comes of them is called simulated."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hardware.presets.machines import MACHINES
from hardware.profile import Profile

PRESETS = tuple(MACHINES)
"""Their names."""


@cache
def preset(name: str) -> Profile:
    """The profile of a preset; ValueError names those that exist."""
    if name not in MACHINES:
        raise ValueError(f"preset is {name!r}, but must be one of {', '.join(PRESETS)}; or measure a machine with `grow profile --save`")
    return MACHINES[name].profile()


def hardware(text: str) -> Profile:
    """The profile that a text names: a preset, or a file that `grow profile --save` wrote. ValueError where it is neither."""
    if text in MACHINES:
        return preset(text)
    path = Path(text)
    if not path.is_file():
        raise ValueError(
            f"hardware is {text!r}, but must be a file that `grow profile --save` wrote, or one of {', '.join(PRESETS)}; check the path"
        )
    return Profile.load(path)

"""How every space is held on the devices, and the strategies that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from hardware.workload import Workload

Layout: TypeAlias = Literal["whole", "batch", "units"]
"""All units of all samples on every device; a share of the samples; a share of the units."""

Strategy: TypeAlias = Mapping[str, Layout]
"""A layout for every space."""

STRATEGIES = ("single", "data", "units")
"""One device; every space ``batch`` (data parallelism); every hidden space ``units`` (model parallelism)."""


def strategy(work: Workload, name: str) -> dict[str, Layout]:
    """The strategy of that name.

    Under ``units`` input and output are whole: every device has the batch, and the logits are totalled on all.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy is {name!r}, but must be one of {', '.join(STRATEGIES)}")
    if name == "units":
        return {space: "units" if space in work.hidden else "whole" for space in work.units}
    return dict.fromkeys(work.units, "batch" if name == "data" else "whole")


def name_of(work: Workload, layouts: Strategy) -> str:
    """The name of a strategy; ValueError where it has none yet."""
    missing = sorted(set(work.units) ^ set(layouts))
    if missing:
        raise ValueError(f"strategy names the spaces {sorted(layouts)}, but must name exactly those of the network; check {missing[0]!r}")
    for name in STRATEGIES:
        if strategy(work, name) == dict(layouts):
            return name
    raise ValueError(f"strategy is {dict(layouts)}, but must be that of one of {', '.join(STRATEGIES)}")

"""The first two trials of a run, which the others are measured against: the dense start network on one device, and data-parallel on all."""

from __future__ import annotations

from search.recipe import TrialRole

DENSE = 0
"""Number of the dense baseline."""

DATA_PARALLEL = 1
"""Number of the data-parallel baseline."""


def role_of(number: int) -> TrialRole:
    """What a trial of that number is there for."""
    return "baseline_dense" if number == DENSE else "baseline_data_parallel" if number == DATA_PARALLEL else "search"


def baseline(role: TrialRole, devices: int) -> dict[str, object]:
    """What makes a recipe the dense start network on one device, or data-parallel on all; on one device the two are the same."""
    used = devices if role == "baseline_data_parallel" else 1
    return {
        "initial": "dense",
        "density": 1.0,
        "drop_fraction": 0.0,
        "price": 0.0,
        "imbalance": 0.0,
        "devices": used,
        "strategy": "data" if used > 1 else "single",
    }

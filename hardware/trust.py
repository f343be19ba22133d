"""How far predictions can be trusted: what of a case lies beyond those that predictions were compared with the clock on."""

from __future__ import annotations

from hardware.profile import Profile
from hardware.workload import Workload


def quantities(work: Workload, batch: int, devices: int) -> dict[str, float]:
    """What the time of a step depends on most. density: of the whole network; rows: of its widest layer; taps: of its largest
    convolution, 1 without any.
    """
    possible = sum(layer.rows * layer.columns * layer.taps for layer in work.layers)
    connections = sum(layer.connections for layer in work.layers)
    return {
        "density": connections / possible,
        "connections": connections,
        "batch": batch,
        "layers": len(work.layers),
        "rows": max(layer.rows for layer in work.layers),
        "taps": max(layer.taps for layer in work.layers),
        "devices": devices,
    }


def beyond(profile: Profile, work: Workload, strategy: str, batch: int, devices: int) -> list[str]:
    """Why a prediction may be worse than the calibration says, in words; empty within its range.

    A machine that is elsewhere, or that was never calibrated, has no such range, which is said too.
    """
    if profile.calibration is None:
        return ["the profile is not calibrated; `grow calibrate` compares its predictions with the clock"]
    return profile.calibration.beyond(strategy, **quantities(work, batch, devices))

"""`grow calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from search.options import DeviceChoice
from search.terminal import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hardware.calibrate import Comparison
    from hardware.profile import Profile

Flag = Parameter(negative="")


def calibrate(
    *,
    gpus: int = 2,
    device: DeviceChoice = "auto",
    anew: Annotated[bool, Flag] = False,
    seconds_per_case: float = 1.0,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Compare predictions with the clock, correct what is systematically off, and say how far off they are on other cases.

    Takes two or three minutes, with the devices to itself. Steps are timed in units of a fixed product that runs beside them, so that a
    machine whose speed drifts is compared with itself: measured is that many times the product's median. What it finds is kept in the
    profile, and used by every prediction from then on.

    Example: grow calibrate --gpus 2 --anew

    Parameters
    ----------
    gpus
        Devices to calibrate.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    anew
        Measure the profile anew first.
    seconds_per_case
        How long each case is trained.
    json
        Print one JSON object.
    """
    from hardware.cache import keep, obtain
    from hardware.calibrate import calibrate as compare
    from hardware.devices import discover
    from search.cli.output import print_json
    from search.report import show

    devices = discover(device, gpus)
    if devices.note is not None:
        say(devices.note)
    profile, compared = compare(obtain(devices.devices, anew=anew, progress=say), seconds_per_case=seconds_per_case, progress=say)
    keep(profile, say)
    if json:
        assert profile.calibration is not None
        rows = [{**asdict(row.case), "predicted_s": row.predicted_s, "measured_s": row.measured_s} for row in compared]
        print_json({"coefficients": asdict(profile.coefficients), "calibration": asdict(profile.calibration), "cases": rows})
    else:
        show(*tables(profile, compared))
    return 0


def tables(profile: Profile, compared: Sequence[Comparison]) -> list[RenderableType]:
    """Every held-out case, the errors over all of them, and the coefficients."""
    from search.report import percent, table

    rows = [
        (
            row.case.network,
            percent(row.case.density),
            percent(row.case.crossing) if row.case.strategy == "model" else "-",
            str(row.case.batch),
            row.case.strategy,
            str(row.case.devices),
            f"{1e3 * row.predicted_s:.3g}",
            f"{1e3 * row.measured_s:.3g}",
            f"{1e3 * row.lowest_s:.3g} to {1e3 * row.highest_s:.3g}",
            f"{100 * (row.ratio - 1):+.1f} %",
        )
        for row in sorted(compared, key=lambda row: (row.case.strategy, row.measured_s))
    ]
    columns = ("network", "density", "crossing", "batch", "strategy", "devices", "predicted ms", "measured ms", "range", "error")
    found = profile.calibration
    assert found is not None
    facts = [
        ("held-out cases", str(found.cases)),
        ("median error", percent(found.median_error)),
        ("worst error", percent(found.worst_error)),
        ("Kendall tau", f"{found.kendall_tau:.3f}"),
        *((f"coefficient {name}", f"{value:.3g}") for name, value in asdict(profile.coefficients).items()),
    ]
    return [
        table(f"steps of held-out cases on {profile.described}", columns, rows, text=("network", "strategy", "range")),
        table("predictions against the clock", ("what", "value"), facts, text=("what",)),
    ]

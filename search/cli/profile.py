"""`grow profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.options import DeviceChoice


def profile(
    *, gpus: int = 2, device: DeviceChoice = "auto", save: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Measure the devices and the links between them, as a run does before its first trial; cached until something changes.

    Example: grow profile --gpus 2

    Parameters
    ----------
    gpus
        Devices to profile.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    save
        Write the profile to this file as well.
    json
        Print it as one JSON object.
    """
    from hardware import devices
    from hardware.profile import measure
    from search import report
    from search.cli.output import print_json

    found = measure(devices.discover(device, gpus))
    if save is not None:
        found.save(save)
    if json:
        print_json(found.to_json())
    else:
        report.show(*report.tables_of("measured profile", found.to_json()))
    return 0

"""`grow profile`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.errors import ConfigurationError
from search.options import DeviceChoice


def profile(
    *,
    gpus: int = 2,
    device: DeviceChoice = "auto",
    anew: Annotated[bool, Parameter(negative="")] = False,
    save: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure the devices and the links between them, as a run does before its first trial; cached until something changes.

    Example: grow profile --gpus 2

    Parameters
    ----------
    gpus
        Devices to profile.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    anew
        Measure even where there is a profile of these devices.
    save
        Write the profile to this file as well.
    json
        Print it as one JSON object.
    """
    from hardware.devices import discover
    from hardware.profile import obtain
    from search import report
    from search.cli.output import print_error_line, print_json

    devices = discover(device, gpus)
    if devices.note is not None:
        print_error_line(devices.note)
    found = obtain(devices.devices, anew=anew, progress=print_error_line)
    if save is not None:
        try:
            found.save(save)
        except OSError as error:
            reason = error.strerror or "not writable"
            raise ConfigurationError(f"save is {str(save)!r}, but must be a file that can be written ({reason}); choose another") from error
    if json:
        print_json(asdict(found))
    else:
        report.show(*report.tables_of("measured profile", asdict(found)))
    return 0

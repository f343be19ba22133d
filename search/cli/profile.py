"""`grow profile`."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from search.options import DeviceChoice
from search.terminal import say

if TYPE_CHECKING:
    from hardware.profile import Profile

Flag = Parameter(negative="")


def profile(
    *,
    gpus: int = 2,
    device: DeviceChoice = "auto",
    hardware: str | None = None,
    anew: Annotated[bool, Flag] = False,
    full: Annotated[bool, Flag] = False,
    save: Path | None = None,
    picture: Path | None = None,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Measure the devices and the links between them, as a run does before its first trial; cached until something changes.

    Example: grow profile --gpus 2 --save here.json --picture here.html

    On several hosts, torchrun starts one rank a device: torchrun --nnodes 2 --nproc-per-node 1 --master-addr ADDRESS --node-rank 0
    -m search.cli profile --save cluster.json, and the same with --node-rank 1 on the other.

    Parameters
    ----------
    gpus
        Devices to profile. torchrun says it otherwise.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    hardware
        Show this machine instead: a file of --save, or pcie-2, pcie-4, nvlink-8 or infiniband-2x8.
    anew
        Measure even where there is a profile of these devices.
    full
        Measure many more sizes, which takes minutes.
    save
        Write the profile to this file as well.
    picture
        Draw the device graph, its bandwidths and its collectives as an HTML page.
    json
        Print it as one JSON object.
    """
    from search.cli.output import check_page, print_json, written

    check_page("picture", picture)
    if hardware is None and {"RANK", "WORLD_SIZE"} & set(os.environ):
        joined = _joined(device, full=full)
        if joined is None:  # rank 0 alone tells
            return 0
        found = joined
    elif hardware is None:
        found = _measured(gpus, device, anew=anew, full=full)
    else:
        from hardware.presets import hardware as named

        found = named(hardware)
    if save is not None:
        written("save", save, found.save)
    if picture is not None:
        from search.profile_report import draw

        written("picture", picture, lambda path: draw(found, path))
    if json:
        print_json({"word": "simulated" if hardware is not None and found.word == "simulated" else "measured", **asdict(found)})
    else:
        from search import profile_report, report

        report.show(*profile_report.tables(found))
    return 0


def _joined(device: DeviceChoice, *, full: bool) -> Profile | None:
    """What ranks that a launcher started measure together, on rank 0."""
    from hardware.devices import discover, gpus
    from hardware.execute.meeting import Meeting, join, own_address
    from hardware.execute.ranks import RankError
    from hardware.sweep import FULL, QUICK, measure_joined
    from search.errors import RunError
    from search.train import settle

    meeting = Meeting.from_environment(os.environ)
    assert meeting is not None
    kind: Literal["cpu", "cuda"] = "cuda" if device == "cuda" or (device == "auto" and gpus()) else "cpu"
    here = discover(kind, meeting.local_rank + 1).devices[meeting.local_rank]
    try:
        rank = join(meeting, kind, 1)
    except RankError as error:
        raise RunError(str(error)) from error
    host = f"{platform.node()} at {own_address(meeting)}"
    found = measure_joined(rank, replace(here, id=f"{host}/{here.id}") if kind == "cpu" else here, host, grid=FULL if full else QUICK)
    settle()
    return found


def _measured(gpus: int, device: DeviceChoice, *, anew: bool, full: bool) -> Profile:
    from hardware.cache import obtain
    from hardware.devices import discover

    devices = discover(device, gpus)
    if devices.note is not None:
        say(devices.note)
    return obtain(devices.devices, anew=anew, full=full, progress=say)

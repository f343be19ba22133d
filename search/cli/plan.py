"""`grow plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from search.errors import ConfigurationError
from search.options import DeviceChoice
from search.terminal import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hardware.profile import Profile

Initial = Literal["dense", "erk", "erdos_renyi", "expander", "radixnet", "radixnet_permuted", "minimal"]
"""The seed topologies of recipes."""
MARK = "*"
"""Behind a prediction that is beyond what was calibrated."""
SHOWN = 8
"""Candidates in the table, beside the named ones."""


def plan(
    *,
    network: str,
    gpus: int = 2,
    hardware: str | None = None,
    batch: int = 128,
    input: str | None = None,
    device: DeviceChoice = "auto",
    initial: Initial | None = None,
    density: float = 1.0,
    budget: float = 120.0,
    save: Path | None = None,
    picture: Path = Path("timeline.html"),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find the parallel strategy under which a start network trains fastest: a layout for each of its spaces.

    Example: grow plan --network alexnet --gpus 4

    Parameters
    ----------
    network
        An installed start network.
    gpus
        Devices to plan for.
    hardware
        Plan for a machine that is elsewhere: a file that `grow profile --save` wrote, or the name of a preset. Without it, this machine
        is profiled and the best candidates are timed.
    batch
        Samples of one training step.
    input
        Shape of one sample, as in 3x224x224. Without it, the smallest usual shape that the network can read.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    initial
        Seed topology that the network begins as: erk where a density is given, else dense.
    density
        Connections of the seed topology, as a share of those of the start network.
    budget
        Seconds after which no candidate is timed any more, the best and the named ones first; 0 times none.
    save
        Write the plan to this JSON file; `grow train RECIPE --strategy FILE` trains so.
    picture
        Write the timeline of the step to this HTML file.
    json
        Print one JSON object.
    """
    from search.cli.output import check_page, print_json, written
    from search.example import shape_of
    from search.files import write_json

    initial = initial or ("dense" if density == 1 else "erk")
    check_page("picture", picture)
    _check(gpus, batch, initial, density, {"picture": picture, "save": save})
    shape = None if input is None else shape_of(input)
    from hardware.presets import hardware as described
    from search import planning, report, timeline

    elsewhere = None if hardware is None else described(hardware)
    if elsewhere is not None:
        elsewhere.check_devices(gpus)
    subject = planning.subject(planning.Drawn(network, shape, 0, initial, density, gpus), batch)
    if shape is None:
        say(f"the input of {network} is taken to be {'x'.join(map(str, subject.shape))}; name another with --input")
    profile = elsewhere or _profile(device, gpus)
    found = planning.planned(subject, profile, gpus, budget, say)
    document = planning.document(subject, profile, found, gpus)
    for doubt, whose in _doubts(document).items():
        say(f"beyond what was calibrated ({MARK}): {doubt} ({whose})")
    written("picture", picture, lambda path: timeline.draw(found.best.simulation.timeline, _title(document), path))
    if save is not None:
        written("save", save, lambda path: write_json(path, document))
    if json:
        print_json({**document, "picture": str(picture)})
    else:
        report.show(_title(document), *_tables(document))
        print(f"Timeline of the {profile.word} step: {picture}")  # on one line, however long
    return 0


def _check(gpus: int, batch: int, initial: Initial, density: float, files: Mapping[str, Path | None]) -> None:
    """ConfigurationError for what can be refused before anything is loaded."""
    for name, value in (("gpus", gpus), ("batch", batch)):
        if value < 1:
            raise ConfigurationError(f"{name} is {value}, but must be at least 1; choose another with --{name}")
    if not 0 < density <= 1:
        raise ConfigurationError(f"density is {density}, but must be in (0, 1]; it is a share of the connections")
    if density < 1 and initial == "dense":
        raise ConfigurationError(f"density is {density}, but must be 1 where --initial is dense; choose another --initial, such as erk")
    for name, file in files.items():
        if file is not None and not file.parent.is_dir():
            raise ConfigurationError(f"{name} is {str(file)!r}, but must be in a folder that exists; choose another with --{name}")


def _profile(device: DeviceChoice, gpus: int) -> Profile:
    from hardware.cache import obtain
    from hardware.devices import discover

    devices = discover(device, gpus)
    if devices.note is not None:
        say(devices.note)
    return obtain(devices.devices, progress=say)


def _title(document: Mapping[str, Any]) -> str:
    step = f"{1000 * document['predicted_s']:.4g} ms {document['word']}"
    density = "" if document["density"] == 1 else f" at density {100 * document['density']:.3g} %"
    what = f"{document['network']}{density}, batch {document['batch']}, {document['strategy']}"
    return f"{what} on {document['devices']} of {document['gpus']} devices, {document['hardware']}: {step}"


def _tables(document: Mapping[str, Any]) -> list[RenderableType]:
    from search.report import table

    word = document["word"]
    spaces = [(space, layout, ", ".join(map(str, document["parts"].get(space, ["all"])))) for space, layout in document["layouts"].items()]
    return [
        table("strategy", ("space", "layout", "units per device"), spaces, text=("space", "layout", "units per device")),
        table(
            "candidates, the fastest first",
            ("strategy", "devices", f"{word} ms", "measured ms", "compute ms", "MB sent", "memory MB", "fits"),
            [_row(candidate) for place, candidate in enumerate(document["candidates"]) if place < SHOWN or _named(candidate, document)],
            text=("strategy", "fits"),
        ),
        _links(document["link_bytes"]),
        table(
            "memory",
            ("device", f"MB {word}"),
            [(str(number), f"{size / 1e6:,.1f}") for number, size in enumerate(document["device_memory_bytes"])],
        ),
    ]


def _doubts(document: Mapping[str, Any]) -> dict[str, str]:
    """Why predictions may be worse than the calibration says -> of which candidates."""
    from search.planning import letters

    every, whose = document["candidates"], dict[str, list[str]]()
    for candidate in every:
        for doubt in candidate["beyond"]:
            whose.setdefault(doubt, []).append(f"{letters(candidate['strategy'], candidate['layouts'])} on {candidate['devices']}")
    return {doubt: "all candidates" if len(names) == len(every) else ", ".join(names) for doubt, names in whose.items()}


def _named(candidate: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    return candidate["strategy"] != "mixed" and candidate["devices"] in (1, document["gpus"])


def _row(candidate: Mapping[str, Any]) -> list[str]:
    from search.planning import letters

    measured = candidate["measured_s"]
    return [
        letters(candidate["strategy"], candidate["layouts"]),
        str(candidate["devices"]),
        f"{1000 * candidate['predicted_s']:.4g}{MARK if candidate['beyond'] else ''}",
        "not timed" if measured is None else f"{1000 * measured:.4g}",
        f"{1000 * candidate['compute_s']:.4g}",
        f"{(candidate['halo_bytes_per_step'] + candidate['sum_bytes_per_step']) / 1e6:,.2f}",
        f"{candidate['memory_bytes'] / 1e6:,.0f}",
        "yes" if candidate["fits"] else "no",
    ]


def _links(sent: Sequence[Sequence[int]]) -> RenderableType:
    from search.report import table

    columns = ["MB from", *(f"to {number}" for number in range(len(sent)))]
    rows = [[str(number), *(f"{size / 1e6:,.2f}" if size else "" for size in row)] for number, row in enumerate(sent)]
    return table("links", columns, rows)

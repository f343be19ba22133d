"""`grow run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.cli.output import conclude
from search.options import DeviceChoice, Options, ThroughputChoice
from search.recipe import parse_setting

Flag = Parameter(negative="")


def run(
    *,
    study: str,
    gpus: int,
    network: str | None = None,
    trials: int = 12,
    seed: int = 0,
    name: str | None = None,
    tolerance: float = 1.0,
    device: DeviceChoice = "auto",
    hardware: str | None = None,
    throughput: ThroughputChoice = "predicted",
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    json: Annotated[bool, Flag] = False,
) -> int:
    """Search recipes for a study's network: accuracy against training throughput on several devices.

    Example: grow run --study mnist --gpus 2

    Parameters
    ----------
    study
        Name of an installed study (`grow studies` lists them), or path.py:NAME. A file is run as code.
    gpus
        Devices to plan for.
    network
        Start network, by a name that the study offers; its first one by default.
    trials
        Budget: a total, which counts the two baselines.
    seed
        Of weights, batches, edits and the sampler.
    name
        Name of the run; the study's and a number by default.
    tolerance
        Accepted loss of validation accuracy against trial 0, in points.
    device
        auto takes GPUs when there are enough, and lets CPU workers stand in otherwise.
    hardware
        Plan for this machine instead, and measure nothing: a file of `grow profile --save`, or pcie-2, pcie-4, nvlink-8 or
        infiniband-2x8. Throughput is then simulated.
    throughput
        What the search maximises: the cost model's prediction, or the clock.
    runs_dir
        Folder of all runs.
    data_dir
        Folder of the data; found or downloaded by default.
    settings
        key=value: fix a field of the recipe, as in --set steps=200. May be repeated.
    json
        Print one JSON object on stdout at the end, and nothing else there.
    """
    from search.definition import check_reference
    from search.run import start

    found = check_reference(study)
    options = Options(
        study=found.text,
        gpus=gpus,
        network=network,
        trials=trials,
        seed=seed,
        tolerance=tolerance,
        device=device,
        hardware=hardware if hardware is None or not Path(hardware).is_file() else str(Path(hardware).resolve()),
        throughput=throughput,
        data_dir=None if data_dir is None else str(data_dir.resolve()),
        settings=dict(parse_setting(text) for text in settings),
    )
    return conclude(start(options, found.sha256, runs_dir, name), as_json=json)

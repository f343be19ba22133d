"""`grow run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from search.cli.output import conclude
from search.options import DeviceChoice, Options, SamplerChoice, ThroughputChoice
from search.recipe import parse_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from search.options import Plan

Flag = Parameter(negative="")


def run(
    *,
    study: str,
    gpus: int,
    gpus_per_trial: int | None = None,
    network: str | None = None,
    trials: int = 12,
    seed: int = 0,
    name: str | None = None,
    tolerance: float = 1.0,
    device: DeviceChoice = "auto",
    hardware: str | None = None,
    throughput: ThroughputChoice = "predicted",
    sampler: SamplerChoice = "tpe",
    early_stopping: bool = False,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    storage: str | None = None,
    lease_s: float = 60.0,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    json: Annotated[bool, Flag] = False,
    print_config: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
) -> int:
    """Search recipes for a study's network: accuracy against training throughput on several devices.

    Example: grow run --study mnist --gpus 2

    Several processes or machines on one run: grow run ... --storage postgresql://USER@HOST/DATABASE --runs-dir /shared/runs, and then, on
    each of the others, grow resume RUN --runs-dir /shared/runs. All of them need the same folder of the run, on a common file system,
    and study, data and code under the same paths; the storage alone does not carry checkpoints.

    Parameters
    ----------
    study
        Name of an installed study (`grow studies` lists them), or path.py:NAME. A file is run as code.
    gpus
        Devices to plan for.
    gpus_per_trial
        Plan every network for so many of them, and let gpus / gpus-per-trial trials work side by side, each on devices of its own. What a
        trial then draws depends on which others have ended by then: only trials one after the other repeat to the last bit. Without it,
        networks are planned for all devices; where the clock is the objective, trials take turns, else one trains on each device.
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
        What the search maximises: the cost model's prediction, or the clock. The clock runs only while nothing else trains on the trial's
        devices; cores share their memory, so on CPU it waits until nothing trains on the host.
    sampler
        What draws the recipes: tree-structured Parzen estimators, NSGA-II, chance, or Gaussian processes (slowest to draw).
    early_stopping
        End trials that cannot reach the front any more, at 10, 20, 30, 50 or 70 % of their training: where no course that others took from
        there leads to it. Off by default: a network that would have done better than all of its kind is lost.
    runs_dir
        Folder of all runs.
    data_dir
        Folder of the data; found or downloaded by default.
    storage
        Share the run with other processes through postgresql://USER:PASSWORD@HOST/DATABASE, mysql://..., or grpc://HOST:PORT (Optuna's
        proxy); sqlite:////PATH for processes of one machine. The password goes into no file: give it by GROW_STORAGE, or to the driver.
    lease_s
        Seconds without a sign of life after which the other processes take over from one of them.
    settings
        key=value: fix a field of the recipe, as in --set steps=200. May be repeated.
    json
        Print one JSON object on stdout at the end, and nothing else there.
    print_config
        Print every value and where it comes from, as TOML that --config reads, and do nothing else.
    dry_run
        Print configuration, search space, devices and the time that the search may take, and do nothing else.
    """
    from search.definition import check_reference
    from search.run import start
    from search.rundir import check_new
    from search.storage_url import storage_url

    found, url = check_reference(study), storage_url(storage)
    options = Options(
        study=found.text,
        gpus=gpus,
        gpus_per_trial=gpus_per_trial,
        network=network,
        trials=trials,
        seed=seed,
        tolerance=tolerance,
        device=device,
        hardware=hardware if hardware is None or not Path(hardware).is_file() else str(Path(hardware).resolve()),
        throughput=throughput,
        sampler=sampler,
        early_stopping=early_stopping,
        data_dir=None if data_dir is None else str(data_dir.resolve()),
        storage=None if url is None else str(url),
        lease_s=lease_s,
        settings=dict(parse_setting(text) for text in settings),
    )
    if print_config or dry_run:
        check_new(runs_dir, name)
        place = {"name": name, "runs_dir": str(runs_dir)}
        return _rehearse(options, found.sha256, place, dry=dry_run, as_json=json)
    return conclude(start(options, found.sha256, runs_dir, name, url), as_json=json)


def _rehearse(options: Options, study_sha256: str | None, place: Mapping[str, object], *, dry: bool, as_json: bool) -> int:
    from search import rehearsal
    from search.cli.configuration import SOURCES
    from search.cli.output import print_json

    resolved = rehearsal.configuration(options, study_sha256, SOURCES.get(), place)
    plan = rehearsal.rehearse(options, study_sha256) if dry else None
    if as_json:
        print_json({"configuration": resolved} | ({} if plan is None else _planned(options, plan)))
        return 0
    print(rehearsal.as_toml(resolved))
    if plan is not None:
        from search.report import show

        show(*_tables(options, plan))
    return 0


def _planned(options: Options, plan: Plan) -> dict[str, object]:
    """What a dry run finds, as plain data."""
    from search import rehearsal

    return {
        "network": plan.network,
        "search_space": plan.ranges,
        "first_guesses": list(plan.first_guesses),
        "data": plan.data,
        "devices": {"kind": plan.kind, "names": list(plan.device_names), "elsewhere": plan.elsewhere},
        "trials_at_once": rehearsal.trials_at_once(options, plan),
        "estimated_s": rehearsal.estimate_s(options, plan),
    }


def _tables(options: Options, plan: Plan) -> list[RenderableType]:
    from search import rehearsal
    from search.report import table
    from search.space import from_json

    seconds = rehearsal.estimate_s(options, plan)
    facts = [
        ("start network", plan.network),
        (
            "data",
            f"{plan.data['name']}: {plan.data['train']:,} training, {plan.data['validation']:,} validation, {plan.data['test']:,} test",
        ),
        ("devices", ", ".join(plan.device_names) + ("" if plan.elsewhere is None else f" of {plan.elsewhere}, simulated")),
        ("trials at once", str(rehearsal.trials_at_once(options, plan))),
        (
            "estimated time",
            "unknown, as the profile is of another machine" if seconds is None else _estimated(seconds),
        ),
    ]
    ranges = [(name, rehearsal.described(values)) for name, values in from_json(plan.ranges).items()]
    guesses = [(", ".join(f"{name} {value}" for name, value in guess.items()),) for guess in plan.first_guesses]
    return [
        table("search space", ("field", "range"), ranges, text=("field", "range")),
        *([table("tried first", ("values",), guesses, text=("values",))] if guesses else []),
        table("plan", ("what", "value"), facts, text=("what", "value")),
    ]


def _estimated(seconds: float) -> str:
    rest = "starting and evaluating every trial, editing its network, and timing the baselines and the front at the end"
    return f"at most {_duration(seconds)} of training steps; not counted: {rest}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

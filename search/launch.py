"""From what the user asked of `grow train` to ranks at work: started here, or found where a launcher started them.

Everything that can be refused is refused before a rank is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search.errors import ConfigurationError, RunError, RunNotFoundError, StoppedError, suggestion
from search.files import read_json, write_json
from search.process import Signals, noted_signals
from search.recipe import WHOLE_ALONE, Recipe
from search.rundir import RunFolder, TrialFolder

if TYPE_CHECKING:
    from search.planning import Planned

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; None: what the recipe says."""

    recipe: Path
    gpus: int | None = None
    strategy: str | None = None
    folder: Path | None = None
    resume: bool = False
    device: Literal["recipe", "cuda", "cpu"] = "recipe"
    hardware: Path | None = None
    meeting_s: float = 60.0


def launch(wanted: Wanted) -> Result | None:
    """Train, and return the result; None on a rank of a launcher's other than rank 0."""
    path = _recipe_file(wanted.recipe)
    recipe = Recipe.from_json(read_json(path))
    if {"RANK", "WORLD_SIZE"} & set(os.environ):
        return _join(wanted, recipe, path)
    count = _planned_devices(wanted, recipe) if wanted.gpus is None else wanted.gpus
    order = _order(wanted, recipe, path, count)
    _prepare(Path(order["folder"]), order["recipe"], resume=wanted.resume)
    return _run(order, recipe, count, _kind(wanted, recipe))


def _run(order: dict[str, Any], recipe: Recipe, count: int, kind: Literal["cpu", "cuda"]) -> Result:
    """Ranks of our own, on this host."""
    from hardware.execute.ranks import RankError, run_ranks
    from search.train import train

    with noted_signals() as signals:
        try:
            result, *_ = run_ranks(
                train, order, ranks=count, kind=kind, threads=recipe.threads, timeout_s=None, stop=lambda: signals.received is not None
            )
        except RankError as error:
            if signals.received is not None:
                raise StoppedError(signals.received, f"{error}; go on from the last checkpoint with --resume") from error
            if error.refused:
                _forget(Path(order["folder"]))
            raise _told(error) from error
    assert result is not None
    return _checked(result, signals)


def _join(wanted: Wanted, recipe: Recipe, path: Path) -> Result | None:
    """One rank, which a launcher started."""
    from hardware.execute.meeting import Meeting, join
    from hardware.execute.ranks import RankError
    from search.train import settle, train

    meeting = Meeting.from_environment(os.environ)
    assert meeting is not None
    if wanted.gpus not in (None, meeting.count):
        raise ConfigurationError(f"gpus is {wanted.gpus}, but must be the launcher's number of ranks, {meeting.count}; leave --gpus out")
    order = _order(wanted, recipe, path, meeting.count)
    if meeting.rank == 0:  # a launcher that starts the ranks anew wants them to go on
        _prepare(Path(order["folder"]), order["recipe"], resume=wanted.resume or meeting.attempt > 0)
    try:
        rank = join(meeting, _kind(wanted, recipe), recipe.threads, wanted.meeting_s)
    except RankError as error:
        raise RunError(str(error)) from error
    with noted_signals() as signals:
        result = train(replace(rank, stopping=lambda: signals.received is not None), order)
        settle()
    return None if result is None else _checked(result, signals)


def _forget(folder: Path) -> None:
    """Leave nothing of a training that was refused before its first step, so that the same command can be given again."""
    files = TrialFolder(folder)
    if [path.name for path in folder.iterdir()] == [files.recipe.name]:
        files.recipe.unlink()
        folder.rmdir()


def _told(error: Exception) -> Exception:
    """A rank's failure as the command's."""
    if getattr(error, "refused", False):
        return ConfigurationError(str(error))
    return RunError(f"{error}; remove the cause and go on from the last checkpoint with --resume")


def _checked(result: Result, signals: Signals) -> Result:
    if result["state"] == "stopped":
        raise StoppedError(signals.received or signal.SIGTERM, f"stopped after step {result['step']}; go on with --resume")
    if result["state"] == "failed":
        raise RunError(str(result["failure"]))
    return result


def _recipe_file(path: Path) -> Path:
    found = TrialFolder(path).recipe if path.is_dir() else path
    if not found.is_file():
        raise RunNotFoundError(f"recipe is {str(path)!r}, but must be a recipe's JSON file or a trial's folder; see runs/RUN/trials")
    return found


def _order(wanted: Wanted, recipe: Recipe, path: Path, count: int) -> dict[str, Any]:
    """What all ranks are asked for, as plain data."""
    if count < 1:
        raise ConfigurationError(f"gpus is {count}, but must be at least 1; one rank is one device")
    if wanted.meeting_s <= 0:
        raise ConfigurationError(f"meeting_s is {wanted.meeting_s}, but must be above 0; it is a number of seconds")
    if recipe.hastened and count > 1:
        raise ConfigurationError(f"{recipe.hastened} of the recipe is True, but must be False on {count} ranks, {WHOLE_ALONE}")
    profile = _profile(wanted.hardware, path)
    recipe = _priced(recipe, profile)
    folder = _default_folder(recipe) if wanted.folder is None else wanted.folder
    return {
        "recipe": recipe.to_json(),
        "folder": str(folder.resolve()),
        "strategy": _strategy(wanted.strategy, recipe, count),
        "profile": profile,
    }


def _priced(recipe: Recipe, profile: str | None) -> Recipe:
    """The recipe with its price as a number, so that a training goes on by the price that it began with, whatever machine it goes on on."""
    if not isinstance(recipe.price, str) or not recipe.priced:
        return recipe
    from hardware.profile import Profile
    from search import build
    from search.definition import StudyReference

    network = build.drawn_network(replace(recipe, device="cpu"), StudyReference(recipe.study, recipe.study_sha256).load())
    price = build.price_of(recipe, network.topology, None if profile is None else Profile.load(Path(profile)))
    assert price is not None
    return replace(recipe, price=price)


def _planned_devices(wanted: Wanted, recipe: Recipe) -> int:
    """The devices of the plan that the strategy comes from, else the recipe's."""
    plan = _plan(wanted.strategy)
    return recipe.devices if plan is None else plan.devices


def _plan(strategy: str | None) -> Planned | None:
    """The plan whose file the strategy names, if it names one."""
    from search.planning import read

    return read(Path(strategy)) if strategy is not None and strategy.endswith(".json") else None


def _strategy(wanted: str | None, recipe: Recipe, count: int) -> str | Mapping[str, Any]:
    """Name of the strategy, or the layout of every space."""
    from hardware.layout import OLD_NAMES, STRATEGIES

    names, plan = (*STRATEGIES, *OLD_NAMES), _plan(wanted)
    if plan is not None:
        return _planned(plan, wanted, recipe, count)
    if wanted is not None and wanted not in names:
        rule = f"one of {', '.join(names)}, or a file that grow plan --save wrote"
        raise ConfigurationError(f"strategy is {wanted!r}, but must be {rule}{suggestion(wanted, names)}")
    if count == 1:
        return "single"
    if wanted == "single":
        raise ConfigurationError(f"strategy is 'single', but must be another on {count} devices; leave --strategy out")
    return wanted or ("data" if recipe.strategy == "single" else recipe.how)


def _planned(plan: Planned, file: str | None, recipe: Recipe, count: int) -> str | Mapping[str, Any]:
    """The layouts of a plan, which is for this network and so many devices."""
    if plan.network != recipe.network:
        raise ConfigurationError(f"strategy {file!r} is of network {plan.network!r}, but must be of {recipe.network!r}; plan for that one")
    if plan.devices != count:
        rule = f"for {count}, as --gpus says; leave --gpus out, or plan for as many"
        raise ConfigurationError(f"strategy {file!r} is for {plan.devices} devices, but must be {rule}")
    return "single" if count == 1 else plan.layouts


def _kind(wanted: Wanted, recipe: Recipe) -> Literal["cpu", "cuda"]:
    from hardware.devices import gpus

    kind = recipe.device if wanted.device == "recipe" else wanted.device
    if kind == "cuda" and not gpus():
        raise ConfigurationError("device is 'cuda', but must be 'cpu' on a machine without GPU; train with --device cpu")
    return kind


def _profile(given: Path | None, recipe: Path) -> str | None:
    """The profile that was named, or the one that the recipe's run has frozen."""
    from hardware.profile import Profile

    if given is not None:
        if not given.is_file():
            raise RunNotFoundError(f"hardware is {str(given)!r}, but must be a profile's file; write one with grow profile --save")
        Profile.load(given)  # a damaged one is refused here, where no rank has begun
        return str(given.resolve())
    frozen = RunFolder(recipe.resolve().parent.parent.parent).hardware
    return str(frozen) if frozen.is_file() else None


def _default_folder(recipe: Recipe) -> Path:
    """The same for the same recipe, so that the same command with --resume finds it."""
    digest = hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()
    return Path("trained") / f"{Path(recipe.study.partition(':')[0]).stem}-{recipe.network}-{digest[:8]}"


def _prepare(folder: Path, recipe: Mapping[str, object], *, resume: bool) -> None:
    """A new folder with the recipe, or an old one of the same recipe."""
    files = TrialFolder(folder)
    if files.recipe.is_file():
        if not resume:
            raise ConfigurationError(f"folder is {str(folder)!r}, but must be new or empty; choose another --folder, or add --resume")
        if read_json(files.recipe) != recipe:
            raise ConfigurationError(f"folder is {str(folder)!r}, but must hold a training of this recipe; choose another --folder")
        return
    if resume:
        raise RunNotFoundError(f"folder is {str(folder)!r}, but must hold a training to go on with; leave --resume out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"folder is {str(folder)!r}, but must be new or empty; choose another --folder")
        write_json(files.recipe, recipe)
    except OSError as error:
        raise ConfigurationError(f"folder is {str(folder)!r}, but must be writable ({error.strerror}); choose another --folder") from error

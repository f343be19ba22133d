"""What trials that have ended have lost of their files: named, and made anew as far as others hold it.

None of them is trained again: how they ended stands in the journal, from which the search goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from search.files import JsonObject, read_json_if_valid, write_json
from search.recipe import Recipe
from search.records import RESULT, checked_if_valid, is_result
from search.rundir import RunFolder, TrialFolder
from search.storage import FAILURE, MEMORY, broken, drawn_twice


def lost(trial: FrozenTrial, files: TrialFolder) -> list[str]:
    """Names of the files that a trial that has ended must have and has not, or has damaged; none for one that has not ended."""
    if not trial.state.is_finished() or drawn_twice(trial):
        return []
    needed = [path for path in (files.recipe, files.result) if checked_if_valid(path) is None]
    extra = [path for path in (files.measured, files.test) if path.exists() and checked_if_valid(path) is None]
    return [path.name for path in (*needed, *extra, *(_of_training(files) if _trained(trial) else ()))]


def mend(folder: RunFolder, trials: Iterable[FrozenTrial], recipe: Callable[[int], Recipe] | None = None) -> Iterator[str]:
    """Write anew what other files hold of what trials have lost; what was lost, in words, of each trial.

    recipe: what decides a trial, by the journal; None where that may no longer be what it was trained by.
    """
    for trial in trials:
        files = folder.trial(trial.number)
        names = lost(trial, files)
        if files.recipe.name in names and recipe is not None:
            write_json(files.recipe, recipe(trial.number).to_json())
            names.remove(files.recipe.name)
            yield f"{files.recipe} was missing or damaged, and is made anew from the journal"
        if files.result.name in names and (found := _kept(trial, files)) is not None:
            source, result = found
            write_json(files.result, result)
            names.remove(files.result.name)
            yield f"{files.result} was missing or damaged, and is made anew from {source}"
        if names:
            told = "how it ended stands in the journal, and it is not trained again"
            yield f"trial {trial.number} has lost {', '.join(names)} of {files.path}, missing or damaged; {told}"


def has_network(files: TrialFolder) -> bool:
    """Whether there is what a trial's network is made of: its recipe and a checkpoint that is whole, as its hash says without torch."""
    return checked_if_valid(files.recipe) is not None and any(map(_whole, files.checkpoint.glob("[0-9]*[0-9]")))


def _whole(folder: Path) -> bool:
    meta = read_json_if_valid(folder / "checkpoint.json")
    try:
        with open(folder / "tensors.safetensors", "rb") as tensors:
            return meta is not None and hashlib.file_digest(tensors, "sha256").hexdigest() == meta.get("sha256")
    except OSError:
        return False


def _trained(trial: FrozenTrial) -> bool:
    """Whether a trial left a network: to its end, or to where it fell behind."""
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and MEMORY not in broken(trial))


def _of_training(files: TrialFolder) -> Iterator[Path]:
    """What of a training's course and of its network is not there."""
    yield from (path for path in (files.metrics, files.history) if not path.exists())
    if _last(files) is None:
        yield files.checkpoint


def _kept(trial: FrozenTrial, files: TrialFolder) -> tuple[str, JsonObject] | None:
    """How a trial ended, by its last checkpoint; by the journal where there is no more to say than why. With that source, in words."""
    if _trained(trial):
        saved = (_last(files) or {}).get("extra")
        result = saved.get(RESULT) if isinstance(saved, dict) else None
        return ("its last checkpoint", result) if is_result(result) else None
    state = "failed" if trial.state == TrialState.FAIL else "infeasible"
    return "the journal", {"state": state, "failure": str(trial.user_attrs.get(FAILURE))}


def _last(files: TrialFolder) -> JsonObject | None:
    """What the last checkpoint of a trial says of itself, None where there is none. Its tensors are checked when they are needed."""
    folders = sorted(files.checkpoint.glob("[0-9]*[0-9]"), reverse=True)
    whole = (read_json_if_valid(path / "checkpoint.json") for path in folders if (path / "tensors.safetensors").is_file())
    return next((found for found in whole if found is not None), None)

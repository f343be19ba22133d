"""A journal that is damaged or gone, made anew from the files of the trials: each of them keeps what it entered the journal with.

How a trial ended stands in its `result.json`, so that nothing is lost but the times at which the journal noted it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import RunNotFoundError
from search.files import JsonObject, read_json_if_valid, read_lines, write_json
from search.records import checked_if_valid
from search.rundir import RunFolder, TrialFolder
from search.storage import add_entry, entry_of, open_study, repair

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


def keep(files: TrialFolder, trial: FrozenTrial) -> None:
    """Keep what a trial entered the journal with, unless that is done already."""
    if read_json_if_valid(files.entry) is None:
        write_json(files.entry, entry_of(trial))


def opened(folder: RunFolder, name: str) -> tuple[optuna.Study, str | None]:
    """The study of that name, of a run, for the owner of its lock; with what was lost of its journal, in words.

    RunNotFoundError where the journal is damaged, or gone, and a trial has not kept its entry.
    """
    journal, entries = folder.journal, _entries(folder)
    try:
        if not journal.exists() and _begun(folder):
            raise RunNotFoundError(f"{journal} is missing, but must be there")
        lost = repair(journal)
        study = open_study(journal, name)
        _check(study.get_trials(deepcopy=False), entries, journal)
    except RunNotFoundError as error:
        return _anew(folder, name, entries, error)
    return study, f"the journal ended in a torn line of {lost} bytes, which is lost; nothing else is" if lost else None


def told(folder: RunFolder) -> list[int]:
    """The trials of which the run's events say that they were told, in that order, each once, as far as their results are whole."""
    numbers = [line["number"] for line in read_lines(folder.events) if line.get("event") == "trial_told"]
    known = dict.fromkeys(number for number in numbers if isinstance(number, int))
    return [number for number in known if checked_if_valid(folder.trial(number).result) is not None]


def _entries(folder: RunFolder) -> list[JsonObject]:
    """What the trials have kept, up to the first one that has not."""
    found: list[JsonObject] = []
    for number in count():
        entry = read_json_if_valid(folder.trial(number).entry)
        if entry is None:
            break
        found.append(entry)
    return found


def _begun(folder: RunFolder) -> list[Path]:
    """The folders of the trials that a worker was started for."""
    return [recipe.parent for recipe in folder.trials.glob("[0-9]*/recipe.json")]


def _check(trials: Sequence[FrozenTrial], entries: Sequence[JsonObject], journal: Path) -> None:
    """Optuna passes over lines that it does not understand; without the line of one trial, all later ones have the wrong number."""
    for number, entry in enumerate(entries):
        if number >= len(trials) or entry_of(trials[number]) != entry:
            raise RunNotFoundError(f"{journal} has lost trial {number}")


def _anew(folder: RunFolder, name: str, entries: Sequence[JsonObject], damage: RunNotFoundError) -> tuple[optuna.Study, str]:
    journal, missing = folder.journal, folder.trial(len(entries))
    if any(path.name >= missing.path.name for path in _begun(folder)):
        raise RunNotFoundError(
            f"{damage}, and so is {missing.entry}, of the files from which it could be made anew; restore one of the two from a copy"
        ) from damage
    aside = journal.with_name(journal.name + ".damaged")
    if journal.exists():
        os.replace(journal, aside)
    study = open_study(journal, name)
    for number, entry in enumerate(entries):
        try:
            add_entry(study, entry)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunNotFoundError(
                f"{damage}, and {folder.trial(number).entry} is unreadable ({error!r}); restore one of the two"
            ) from error
    kept = f", kept as {aside.name}," if aside.exists() else ""
    return study, f"{damage}; it is made anew{kept} from the files of {len(entries)} trials: nothing is lost but the times that it noted"

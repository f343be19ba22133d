"""A run in Python: pandas frames of its trials, their history and their metrics, and the network of any trial.

Everything is read when it is first asked for, and kept: load a run that is at work again to see what is new. The run is never written to,
and its lock is never taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from grow.history import flat
from search.definition import StudyDefinition, StudyReference
from search.files import JsonObject, read_json, read_lines
from search.recipe import Recipe
from search.results import RunDocument, TrialDocument, check_trial, document
from search.rundir import RunFolder, TrialFolder, find_run

if TYPE_CHECKING:
    from torch import Tensor

    from grow.network import Network


def loaded(path: Path) -> LoadedRun:
    """The run at a path."""
    return LoadedRun(find_run(str(path), path.parent))


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run that is looked at: see `search.load_run`."""

    folder: RunFolder

    @cached_property
    def document(self) -> RunDocument:
        """What `grow show RUN --json` prints."""
        return document(self.folder)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial, by its number: figures, ``units.SPACE``, ``throughput.*``, ``recipe.FIELD``, ``on_front``."""
        rows = [{**flat(trial), "on_front": trial["number"] in self.document["pareto"]} for trial in self.document["trials"]]
        return pd.DataFrame(rows).set_index("number") if rows else pd.DataFrame(index=pd.Index([], name="number"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for every growth and removal of every trial, in order; see `grow.history.Event`."""
        return self._lines(lambda files: files.history)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row for every line of metrics of every trial: step, phase, loss, accuracy so far, density, connections, units, rate."""
        return self._lines(lambda files: files.metrics)

    def course(self, number: int) -> pd.DataFrame:
        """Metrics and events of one trial in one table, by step.

        what: "metrics" or the kind of the event. connections, density: of the network as it then was; changed: connections that the event
        added or removed.
        """
        files = self.folder.trial(self.trial(number)["number"])
        lines: list[JsonObject] = [{**line, "what": "metrics"} for line in read_lines(files.metrics)]
        events = [_as_course(event) for event in read_lines(files.history)]
        rows = [flat({"step": None, "what": None, **line}) for line in [*lines, *events]]
        found = pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True) if rows else pd.DataFrame()
        return found.convert_dtypes()

    def network(self, number: int) -> Network:
        """The network of a trial's last checkpoint, on the CPU. A study that was given by path is run as code; its data are not needed."""
        from search import build

        return build.saved_network(self._here(number), self._definition(number), self.folder.trial(number).checkpoint)

    def start_network(self, number: int) -> Network:
        """The network that a trial began with, on the CPU."""
        from search import build
        from search.run_profile import frozen_profile

        return build.seeded_network(self._here(number), self._definition(number), frozen_profile(self.folder))

    def example(self, number: int) -> Tensor:
        """What the network of a trial reads, (1, ...)."""
        return self._definition(number).example()

    def recipe(self, number: int) -> Recipe:
        """What decides a trial."""
        return Recipe.from_json(read_json(self.folder.trial(self.trial(number)["number"]).recipe))

    def trial(self, number: int) -> TrialDocument:
        """The document of a trial; ConfigurationError where there is none of that number."""
        check_trial(self.document, number)
        return self.document["trials"][number]

    def _here(self, number: int) -> Recipe:
        return replace(self.recipe(number), device="cpu")

    def _definition(self, number: int) -> StudyDefinition:
        recipe = self.recipe(number)
        return StudyReference(recipe.study, recipe.study_sha256).load()

    def _lines(self, path: Callable[[TrialFolder], Path]) -> pd.DataFrame:
        numbers = [trial["number"] for trial in self.document["trials"]]
        rows = [{"trial": number, **flat(line)} for number in numbers for line in read_lines(path(self.folder.trial(number)))]
        return pd.DataFrame(rows)


def _as_course(event: JsonObject) -> JsonObject:
    names = {"connections": "changed", "units": "units_changed", "connections_after": "connections", "density_after": "density"}
    return {names.get(name, name): value for name, value in event.items()}

"""The recipe of a searched trial, for benchmarks that train it with settings of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grow.network import Network
from search.definition import StudyReference
from search.recipe import Recipe


def recipe_of(study: str, network: str, data_dir: Path | None, **settings: Any) -> Recipe:
    """A trial of an installed study on its data, with some of the recipe's fields set."""
    source = StudyReference(study).load().data(data_dir)
    folder = None if source.folder is None else str(source.folder)
    return Recipe(study=study, network=network, data_dir=folder, data_sha256=source.sha256, number=0, role="search", **settings)


def widest(study: str, network: str | None) -> int:
    """Units of the widest hidden space of a start network; None: the study's first."""
    definition = StudyReference(study).load()
    return max(space.units for space in Network(definition.network(network)(), definition.example()).topology.hidden)

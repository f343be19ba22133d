"""What a study declares, and how it is found: by an installed name, or in a file. Importing this imports neither torch nor optuna."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias, cast

from search.space import Choice, Float, Integer, Range, idle, up_to

if TYPE_CHECKING:
    from torch import Tensor, nn

    from grow.task import Samples, Task

NetworkFactory: TypeAlias = "Callable[[], nn.Module]"
"""Makes a dense start network."""

STANDARD_PARAMETERS: Mapping[str, Range] = {
    "initial": Choice(("erk", "minimal", "radixnet", "dense")),
    "density": Float(0.02, 0.5, log=True),
    "update_interval": Integer(10, 80, log=True),
    "drop_fraction": Float(0.05, 0.5),
    "growth": Choice(("gradient", "random")),
    "pruning": Choice(("magnitude", "obd")),
    "price": Float(4.0, 1024.0, log=True),
    "imbalance": Float(0.02, 0.2),
    "devices": Integer(1, 1024),
    "strategy": Choice(("data", "units")),
}
"""What a study searches unless it says otherwise. The number of devices ends at the number asked for."""

STANDARD_SETTINGS: Mapping[str, object] = {
    "steps": 400,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "pattern": "source_group",
    "partitioner": "mtkahypar",
    "threads": 1,
    "checkpoint_interval": 100,
}
"""What a study sets unless it says otherwise."""


@dataclass(frozen=True)
class DataSource:
    """Which data a run uses: its name, one hash over all of it, its folder (None when held in memory), and samples of each split."""

    name: str
    sha256: str
    folder: Path | None
    train: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class StudyDefinition:
    """A task, its start networks, and which recipe fields are searched, and which are set.

    data: finds and verifies the data, in the folder given or wherever it usually is; quick, without torch.
    task: the task on that data with a batch size and a seed. networks: by name, the first one is the default; each a factory or
    "module:function". example: an input (1, ...). parameters, settings: recipe fields; a field named in neither is searched as in
    STANDARD_PARAMETERS or set as in STANDARD_SETTINGS. first_guesses: parameter values tried before the sampler takes over, all or some of
    them; without ``devices`` on all devices that were asked for.
    """

    name: str
    data: Callable[[Path | None], DataSource]
    task: Callable[[DataSource, int, int], Task]
    networks: Mapping[str, str | NetworkFactory]
    example: Callable[[], Tensor]
    summary: str = ""
    parameters: Mapping[str, Range] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    first_guesses: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not self.networks:
            raise ValueError(f"networks of the study {self.name} is empty, but must name at least one start network; add one")
        fields = STANDARD_PARAMETERS.keys() | STANDARD_SETTINGS.keys()
        for name in (*self.parameters, *self.settings):
            _look_up(name, fields, "the field")
        for name in self.parameters.keys() & self.settings.keys():
            raise ValueError(f"{name} is searched and set in the study {self.name}, but must be one of the two; take it out of one")
        searched = {name: STANDARD_PARAMETERS[name] for name in STANDARD_PARAMETERS.keys() - self.settings.keys()}
        fixed = {name: STANDARD_SETTINGS[name] for name in STANDARD_SETTINGS.keys() - self.parameters.keys()}

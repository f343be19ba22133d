"""The study `digits`: handwritten digits, 8x8, seconds per trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.definition import DataSource, StudyDefinition
from search.space import Float, Integer
from studies.datasets.uci_digits import find, read

if TYPE_CHECKING:
    from torch import Tensor

    from grow.task import Task


def _task(source: DataSource, batch_size: int, seed: int) -> Task:
    from studies.images import classification

    return classification(read(source), 0.0, 16.0, batch_size, seed)


def _example() -> Tensor:
    import torch

    return torch.zeros(1, 1, 8, 8)


digits = StudyDefinition(
    name="digits",
    summary="handwritten digits, 8x8, bundled: seconds per trial",
    data=find,
    task=_task,
    networks={"mlp-64x2": "studies.models:mlp_64x2"},
    example=_example,
    # A small network cannot be as sparse, and a short training has few updates.
    parameters={"density": Float(0.1, 0.8, log=True), "update_interval": Integer(5, 30, log=True)},
    settings={
        "steps": 150,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "pattern": "source_group",
        "checkpoint_interval": 50,
    },
    first_guesses=({"initial": "erk", "density": 0.3, "growth": "gradient", "pruning": "magnitude", "strategy": "units"},),
)
"""Start network 64-64-64-10."""

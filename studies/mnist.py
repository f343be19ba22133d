"""The study `mnist`: handwritten digits, 28x28."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.definition import DataSource, StudyDefinition
from studies.datasets.mnist import find, read

if TYPE_CHECKING:
    from torch import Tensor

    from grow.task import Task

_MEAN, _DEVIATION = 33.32, 78.57  # of the pixels of the 60,000 training digits


def _task(source: DataSource, batch_size: int, seed: int) -> Task:
    from studies.images import classification

    return classification(read(source), _MEAN, _DEVIATION, batch_size, seed)


def _example() -> Tensor:
    import torch

    return torch.zeros(1, 1, 28, 28)


mnist = StudyDefinition(
    name="mnist",
    summary="handwritten digits, 28x28; a bundled sample where the full set cannot be had",
    data=find,
    task=_task,
    networks={
        "mlp-1024x3": "studies.models:mlp_1024x3",
        "lenet-300-100": "studies.models:lenet_300_100",
        "lenet-5": "studies.models:lenet_5",
        "convnet-64-128-256": "studies.models:convnet_64_128_256",
    },
    example=_example,
    settings={
        "steps": 500,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.15,
        "momentum": 0.9,
        "pattern": "source_group",
        "checkpoint_interval": 100,
    },
    first_guesses=(
        {
            "initial": "erk",
            "density": 0.05,
            "update_interval": 37,
            "drop_fraction": 0.5,
            "price": 24.0,
            "growth": "gradient",
            "pruning": "magnitude",
            "imbalance": 0.05,
            "strategy": "units",
        },
        {
            "initial": "minimal",
            "density": 0.1,
            "update_interval": 25,
            "drop_fraction": 0.3,
            "price": 16.0,
            "growth": "gradient",
            "pruning": "magnitude",
            "imbalance": 0.05,
            "strategy": "units",
        },
        {
            "initial": "erk",
            "density": 0.034,
            "update_interval": 37,
            "drop_fraction": 0.5,
            "price": 24.0,
            "growth": "gradient",
            "pruning": "magnitude",
            "imbalance": 0.05,
            "strategy": "units",
        },
    ),
)
"""Start network 784-1024-1024-1024-10, LeNet, or a wide ConvNet."""

"""Is a point inside the circle?"""

import torch
from torch import nn

from grow.task import Samples
from search.definition import StudyDefinition
from search.space import Float

points = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
samples = [Samples(part, (part.norm(dim=1) < 0.8).long()) for part in points.split([2000, 500, 500])]

circle = StudyDefinition.from_samples(
    "circle",
    *samples,
    networks={"mlp-64x2": lambda: nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))},
    parameters={"density": Float(0.1, 0.5, log=True)},
    settings={"steps": 200, "optimizer": "adam", "learning_rate": 0.01},
)

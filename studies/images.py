"""Classification of labelled images."""

from __future__ import annotations

import torch

from grow.task import Classification, Samples
from studies.datasets.split import Images, Split


def classification(split: Split, mean: float, deviation: float, batch_size: int, seed: int) -> Classification:
    """The task on images (N, 1, H, W) of pixels that are scaled by the mean and the deviation given."""

    def samples(labelled: Images) -> Samples:
        pixels = torch.tensor(labelled.images, dtype=torch.float32).unsqueeze(1)
        return Samples(pixels.sub_(mean).div_(deviation), torch.tensor(labelled.labels, dtype=torch.long))

    return Classification(samples(split.training), samples(split.validation), lambda: samples(split.test), batch_size, seed)

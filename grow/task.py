"""What a network is trained for: data, loss and metric. The search sees validation data only; test is read once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs (B, ...) and targets (B, ...)."""


class Task(Protocol):
    """Data, loss and metric. Batches are a function of the step alone, so that a resumed training sees what it would have seen."""

    @property
    def batch_size(self) -> int:
        """Samples of one training batch."""

    def train_batch(self, step: int) -> Batch:
        """The training batch of a step."""

    def validation(self) -> Iterator[Batch]:
        """All validation data, in batches, always in the same order."""

    def test(self) -> Iterator[Batch]:
        """All test data, in batches. Nothing but the final report may call it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the samples, a scalar."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per sample: what counts as right, between 0 and 1, (B,). Its mean is the accuracy."""


def some(batches: Iterator[Batch], samples: int, of: int, seed: int) -> Iterator[Batch]:
    """So many samples, drawn from the seed alone, of batches that hold ``of`` together; in their order, without batches that hold none.

    >>> whole = [(torch.arange(4), torch.zeros(4)), (torch.arange(4, 6), torch.zeros(2))]
    >>> sum(len(targets) for _, targets in some(iter(whole), samples=3, of=6, seed=0))
    3
    """
    chosen = torch.zeros(of, dtype=torch.bool)  # (N,)
    chosen[torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:samples]] = True
    start = 0
    for inputs, targets in batches:
        here = chosen[start : start + len(targets)].nonzero().squeeze(1)  # (B',)
        start += len(targets)
        if len(here):
            yield inputs[here], targets[here]


@dataclass(frozen=True)
class Samples:
    """Inputs (N, ...) and class numbers (N,)."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"targets has {len(self.targets)} samples, but must have one per input, {len(self.inputs)}; pass as many class numbers"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in order, the last batch possibly smaller."""
        for start in range(0, len(self), size):
            yield self.inputs[start : start + size], self.targets[start : start + size]


@dataclass(frozen=True)
class Classification:
    """Classification of samples held in memory, with cross-entropy and accuracy.

    ``read_test`` is called when the test set is asked for, not before. The order of the training samples is a permutation
    drawn anew for each epoch from (seed, epoch); the samples that do not fill a last batch are left out of that epoch.
    """

    training: Samples
    validating: Samples
    read_test: Callable[[], Samples]
    batch_size: int
    seed: int = 0
    evaluation_batch_size: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.batch_size <= len(self.training):
            raise ValueError(
                f"batch_size is {self.batch_size}, but must be between 1 and the number of training samples, {len(self.training)}"
            )

    def train_batch(self, step: int) -> Batch:
        """The training batch of a step, (B, ...) and (B,)."""
        epoch, number = divmod(step, len(self.training) // self.batch_size)
        order = _permutation(self.seed, epoch, len(self.training))
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        # Twice as fast as indexing with a tensor: whole rows are copied.
        return self.training.inputs.index_select(0, chosen), self.training.targets.index_select(0, chosen)

    def validation(self) -> Iterator[Batch]:
        """All validation data, in batches."""
        return self.validating.batches(self.evaluation_batch_size)

    def test(self) -> Iterator[Batch]:
        """All test data, in batches."""
        return self.read_test().batches(self.evaluation_batch_size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, classes)."""
        return functional.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1.0 where the largest logit is the target's, (B,)."""
        return (outputs.argmax(1) == targets).to(torch.float32)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(length, generator=generator)

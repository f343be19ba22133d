"""A task made of data loaders: any two iterables of (inputs, targets)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from grow.task import Batch

REMEMBERED = 16
"""Batches that are kept: evidence looks at the coming ones, and training must see the same."""


def largest_is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per sample: 1.0 where the largest logit (B, classes) is the target's, (B,); of maps (B, classes, ...), the share that is right.

    ValueError where the targets are no class numbers: accuracy is not defined then, and what counts as right must be said.
    """
    classes = outputs.shape[1] if outputs.dim() > 1 else 0
    if targets.is_floating_point() or classes < 2 or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} and dtype {targets.dtype}, but must be class numbers (B, ...) for outputs of shape "
            f"{tuple(outputs.shape)}; say what counts as right: correct=lambda outputs, targets: ..."
        )
    return (outputs.argmax(1) == targets).to(torch.float32).reshape(len(targets), -1).mean(1)


class LoaderTask:
    """Training and validation data from loaders; batches as a function of the step.

    A loader is anything that can be gone through again and again and gives (inputs, targets). What it draws from torch's global
    generator (the order of a shuffling `DataLoader`, random transforms in this process) is a function of ``seed`` and the epoch, and a
    generator of its own is seeded likewise, so a resumed training sees the batches that it would have seen; the part of an epoch
    that is over is gone through again. What a loader draws from elsewhere (Python's or numpy's generators) is not repeated.
    ``loss`` is the mean loss of a batch, ``correct`` says per sample what counts as right.
    """

    def __init__(
        self,
        training: Iterable[Batch],
        validation: Iterable[Batch],
        seed: int = 0,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        correct: Callable[[Tensor, Tensor], Tensor] = largest_is_right,
        test: Iterable[Batch] = (),
    ) -> None:
        for name, loader in (("training", training), ("validation", validation)):
            if isinstance(loader, Iterator):
                raise ValueError(
                    f"{name} is an iterator, which ends after one pass, but must be a loader; pass a DataLoader or a list of batches"
                )
        self._training, self._validation, self._test, self._seed = training, validation, test, seed
        self._loss, self._correct = loss, correct
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._epoch: Iterator[Batch] = iter(())
        self._next = self._end = 0  # of the epoch under way
        self._steps = len(training) if isinstance(training, Sized) else sum(1 for _ in self._drawn(0))
        if not self._steps:
            raise ValueError("training has no batches, but must have at least one; pass a loader with data")

    def reseeded(self, seed: int) -> LoaderTask:
        """The same data in another order."""
        return LoaderTask(self._training, self._validation, seed, self._loss, self._correct, self._test)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training data."""
        return self._steps

    @property
    def batch_size(self) -> int:
        """Samples of the first training batch."""
        return len(self.train_batch(0)[1])

    def train_batch(self, step: int) -> Batch:
        """The training batch of a step."""
        if step not in self._batches:
            if not self._next <= step < self._end:
                epoch, number = divmod(step, self._steps)
                self._epoch, self._next, self._end = self._drawn(epoch), step - number, step - number + self._steps
            for batch in islice(self._epoch, step - self._next + 1):
                self._batches[self._next] = batch
                self._next += 1
                if len(self._batches) > REMEMBERED:
                    self._batches.popitem(last=False)
        if step not in self._batches:
            raise ValueError(f"training has fewer than {self._steps} batches in this epoch, but must have as many as in every other")
        return self._batches[step]

    def validation(self) -> Iterator[Batch]:
        """All validation data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            yield from map(_checked, self._validation)

    def test(self) -> Iterator[Batch]:
        """All test data."""
        return map(_checked, self._test)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the samples, a scalar."""
        return self._loss(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per sample: what counts as right, between 0 and 1, (B,)."""
        return self._correct(outputs, targets)

    def _drawn(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, drawn from a random stream of their own: the training's generator is left as it is."""
        state = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % 2**63).get_state()
        _seed_own_generators(self._training, self._seed, epoch)
        batches: Iterator[Batch] | None = None
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batches = iter(self._training) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            if batch is None:
                return
            yield _checked(batch)


def _seed_own_generators(loader: object, seed: int, epoch: int) -> None:
    """Generators that a DataLoader or its sampler was given, and samplers that want to be told the epoch."""
    for owner in (loader, getattr(loader, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        if callable(tell := getattr(owner, "set_epoch", None)):
            tell(epoch)


def _checked(batch: object) -> Batch:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise ValueError(f"batch is a {type(batch).__name__}, but must be a pair of tensors (inputs, targets); wrap the loader")
    inputs, targets = batch
    return inputs, targets

"""Any loader makes a task: the batches are a function of the step, and drawing them disturbs nobody else's draws."""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from grow.loaders import LoaderTask
from grow.task import Batch

DATA = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3)
VALIDATION = [(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))]


class Endless:
    """An iterable without a length, shuffled by torch's global generator."""

    def __iter__(self) -> Iterator[Batch]:
        for number in torch.randperm(5).tolist():
            yield torch.full((1, 2), float(number)), torch.tensor([number])


LOADERS: dict[str, Callable[[], Iterable[Batch]]] = {
    "shuffled": lambda: DataLoader(DATA, batch_size=2, shuffle=True),
    "own generator": lambda: DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(7)),
    "in order": lambda: DataLoader(DATA, batch_size=2),
    "list": lambda: list(DataLoader(DATA, batch_size=2)),
    "without length": Endless,
}
every_loader = pytest.mark.parametrize("name", LOADERS)


@every_loader
def test_a_resumed_training_sees_the_batches_that_it_would_have_seen(name: str) -> None:
    whole = LoaderTask(LOADERS[name](), VALIDATION, seed=3)
    seen = [whole.train_batch(step) for step in range(17)]
    for start in (0, 4, 5, 13):
        torch.manual_seed(start)
        resumed = LoaderTask(LOADERS[name](), VALIDATION, seed=3)
        for step in range(start, 17):
            inputs, targets = resumed.train_batch(step)
            assert torch.equal(inputs, seen[step][0])
            assert torch.equal(targets, seen[step][1])


@every_loader
def test_looking_ahead_and_coming_back_gives_the_same_batch(name: str) -> None:
    task = LoaderTask(LOADERS[name](), VALIDATION)
    ahead = [task.train_batch(step) for step in (3, 4, 5, 6)]
    assert all(torch.equal(task.train_batch(step)[0], batch[0]) for step, batch in zip((3, 4, 5, 6), ahead, strict=True))
    assert torch.equal(task.train_batch(3)[0], LoaderTask(LOADERS[name](), VALIDATION).train_batch(3)[0])


def test_epochs_are_shuffled_differently_and_hold_all_samples() -> None:
    task = LoaderTask(LOADERS["shuffled"](), VALIDATION)
    epochs = [torch.cat([task.train_batch(step)[0][:, 0] for step in range(start, start + 5)]) for start in (0, 5)]
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert task.steps_per_epoch == 5


def test_the_trainings_own_draws_are_left_alone() -> None:
    task = LoaderTask(LOADERS["shuffled"](), DataLoader(DATA, batch_size=5, shuffle=True))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for step in range(7):
        task.train_batch(step)
    list(task.validation())
    assert torch.equal(torch.rand(3), expected)


def test_validation_is_the_same_every_time() -> None:
    task = LoaderTask(VALIDATION, DataLoader(DATA, batch_size=5, shuffle=True))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(task.validation(), task.validation(), strict=True))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (lambda: iter(VALIDATION), "training is an iterator, which ends after one pass, but must be a loader"),
        (lambda: [], "training has no batches, but must have at least one"),
        (lambda: [torch.zeros(3, 2)], r"batch is a Tensor, but must be a pair of tensors \(inputs, targets\)"),
    ],
)
def test_what_is_no_loader_is_named(training: Callable[[], Iterable[Batch]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LoaderTask(training(), VALIDATION).train_batch(0)

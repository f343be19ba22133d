"""Adam's update of elements of different ages: compiled against torch's operations, and against fresh optimizers (test_optim)."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grow.kernels import aged
from grow.kernels.aged import Rule

RULE = Rule(0.01, (0.9, 0.999), 1e-8, 0.0, decoupled=False)
STEP = 2001
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def tensors(count: int, dtype: torch.dtype = torch.float32, oldest: int = STEP) -> tuple[Tensor, ...]:
    """Parameter, gradient, mean, square and births; a third is as old as the training."""
    generator = torch.Generator().manual_seed(count)
    parameter, gradient, mean = (torch.randn(count, generator=generator, dtype=dtype) for _ in range(3))
    square = torch.rand(count, generator=generator, dtype=dtype)
    birth = STEP - torch.randint(1, oldest + 1, (count,), generator=generator).float()
    return parameter, gradient, mean, square, torch.where(torch.rand(count, generator=generator) < 1 / 3, 0.0, birth)


def updated(rule: Rule, held: tuple[Tensor, ...], by: object = aged.update, step: int = STEP) -> tuple[Tensor, ...]:
    copies = tuple(tensor.clone() for tensor in held)
    by(rule, torch.tensor(float(step)), *copies)  # type: ignore[operator]
    return copies


@pytest.fixture
def no_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's operations are not what the compiled loop is compared with by falling back to them."""
    if not aged.available():
        pytest.skip("numba is not installed")
    monkeypatch.delattr(aged, "by_operations")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 512, 1025])
def test_the_loop_does_what_torchs_operations_do(count: int, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    held = tensors(count, dtype)
    expected = updated(RULE, held, aged.by_operations)
    request.getfixturevalue("no_operations")
    torch.testing.assert_close(updated(RULE, held), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "changed",
    [
        {"decay": 0.1},
        {"decay": 0.1, "decoupled": True},
        {"betas": (0.0, 0.9)},
        {"betas": (0.5, 0.0)},
        {"betas": (0.9, 0.9999)},
        {"epsilon": 0.5},
    ],
    ids=str,
)
def test_it_does_so_by_every_rule(changed: dict[str, object], request: pytest.FixtureRequest) -> None:
    rule, held = replace(RULE, **changed), tensors(100, torch.float64)  # type: ignore[arg-type]
    expected = updated(rule, held, aged.by_operations)
    request.getfixturevalue("no_operations")
    torch.testing.assert_close(updated(rule, held), expected, rtol=1e-12, atol=1e-13)


def test_ages_beyond_the_table_are_as_good_as_infinite(request: pytest.FixtureRequest) -> None:
    most, held = aged.told_apart(RULE.betas, torch.float32), tensors(100)
    expected = updated(RULE, held, aged.by_operations, step=10 * most)
    request.getfixturevalue("no_operations")
    torch.testing.assert_close(updated(RULE, held, step=10 * most), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("no_operations")
def test_an_element_moves_alike_wherever_it_stands() -> None:
    held = tensors(1000)
    whole = updated(RULE, held)
    for cut in (1, 7, 500):
        parts = [updated(RULE, tuple(tensor[some] for tensor in held)) for some in (slice(cut), slice(cut, None))]
        assert all(torch.equal(tensor, torch.cat(pair)) for tensor, *pair in zip(whole, *parts, strict=True) for pair in [pair])


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("no_operations")
def test_threads_change_no_bit(request: pytest.FixtureRequest) -> None:
    held = tensors(3 * 2**15 + 5)
    one = updated(RULE, held)
    request.getfixturevalue("two_threads")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, updated(RULE, held), strict=True))


@pytest.mark.usefixtures("no_operations")
def test_births_that_no_training_has_read_nothing_outside_the_table() -> None:
    held = (*tensors(4)[:4], torch.tensor([float("nan"), float("inf"), -1e30, STEP + 5.0]))
    assert all(tensor[3:].isfinite().all() for tensor in updated(RULE, held))


def test_what_the_loop_does_not_know_is_left_to_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the loop was called")

    monkeypatch.setattr(aged, "_by_loop", refused)
    held = tensors(64)
    lower = tuple(tensor.bfloat16() for tensor in held[:4])
    turned = tuple(tensor.reshape(8, 8).t() for tensor in held)
    slow = replace(RULE, betas=(0.9, 0.999999))
    for rule, given in ((RULE, (*lower, held[4])), (RULE, turned), (slow, held)):
        assert not torch.equal(updated(rule, given)[0], given[0])
    monkeypatch.setattr(aged, "available", lambda: False)
    assert not torch.equal(updated(RULE, held)[0], held[0])

"""Adam's update of elements of different ages: compiled against torch's operations, and against fresh optimizers (test_optim)."""

from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from time import sleep

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow.kernels import aged, lines
from grow.kernels.aged import Rule
from grow.network import Network
from grow.optim import BIRTH, Adam

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
    by(rule, torch.tensor(float(step), device="cpu"), *copies)  # type: ignore[operator]
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
    most, held = aged.told_apart(RULE.betas[1], torch.float32), tensors(100)
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
def test_births_that_no_training_has_read_nothing_outside_the_tables() -> None:
    held = (*tensors(4)[:4], torch.tensor([float("nan"), float("inf"), -1e30, STEP + 5.0]))
    fresh, old = (updated(RULE, (*held[:4], torch.full((4,), birth))) for birth in (STEP - 1.0, -1e9))
    for tensor, young, oldest in zip(updated(RULE, held)[:4], fresh, old, strict=False):
        assert torch.equal(tensor[[1, 3]], young[[1, 3]])  # from the future: as if of this step
        assert torch.equal(tensor[[0, 2]], oldest[[0, 2]])


@pytest.mark.usefixtures("no_operations")
def test_the_order_in_memory_changes_no_bit() -> None:
    held = tuple(tensor.reshape(4, 3, 5, 2) for tensor in tensors(120))
    expected = updated(RULE, held)
    turned = [tensor.to(memory_format=torch.channels_last) for tensor in held]
    turned[1] = held[1].clone()  # a gradient in another order
    for tensor, other in zip(updated(RULE, tuple(turned)), expected, strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.usefixtures("no_operations")
def test_a_beta_of_zero_forgets_what_was() -> None:
    parameter, gradient, square, birth = torch.zeros(2), torch.ones(2), torch.ones(2), torch.zeros(2)
    mean = torch.full((2,), 1e8)
    updated(rule := replace(RULE, betas=(0.0, 0.999)), (parameter, gradient, mean, square, birth))
    moved = updated(rule, (parameter, gradient, mean, square, birth))
    assert moved[2].tolist() == [1, 1]
    assert (moved[0] < -0.005).all()


@pytest.mark.usefixtures("no_operations")
def test_the_default_device_plays_no_role() -> None:
    held = tensors(40)
    expected = updated(RULE, held)
    torch.set_default_device("meta")
    try:
        found = updated(replace(RULE, betas=(0.9, 0.998)), held)  # tables are made anew
        again = updated(RULE, held)
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, expected, strict=True))
    assert not torch.equal(found[3], expected[3])


def test_a_schedule_of_betas_keeps_few_tables() -> None:
    for number in range(40):
        updated(replace(RULE, betas=(0.85 + number / 1000, 0.999)), tensors(8))
    info = aged.corrections.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize == 16


def test_what_the_loop_does_not_know_is_left_to_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aged, "_by_loop")
    held = tensors(64)
    lower = tuple(tensor.bfloat16() for tensor in held[:4])
    turned = tuple(tensor.reshape(8, 8).t() for tensor in held)
    slow = replace(RULE, betas=(0.9, 0.999999))
    for rule, given in ((RULE, (*lower, held[4])), (RULE, turned), (slow, held)):
        expected = updated(rule, given, aged.by_operations)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(updated(rule, given), expected, strict=True))
    monkeypatch.setattr(aged, "available", lambda: False)
    assert torch.equal(updated(RULE, held)[0], updated(RULE, held, aged.by_operations)[0])


def test_state_of_another_shape_is_refused_by_torch_and_not_written_to() -> None:
    parameter, gradient, mean, square, _ = tensors(40)
    with pytest.raises(RuntimeError, match="must match the size"):
        updated(RULE, (parameter, gradient, mean, square, torch.zeros(10)))


def test_an_interrupted_wait_ends_after_all_parts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("two_threads")
    done, waits = [], []

    def interrupted(futures: list[Future[None]]) -> None:
        waits.append(len(futures))
        if len(waits) == 1:
            raise KeyboardInterrupt
        wait(futures)

    def part(first: int, last: int) -> None:
        sleep(0.2)
        done.append((first, last))

    monkeypatch.setattr(lines, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lines.in_parts(part, 2**17, whole=32)
    assert sorted(done) == [(0, 2**16), (2**16, 2**17)]


@pytest.mark.skipif(not aged.available(), reason="numba is not installed")
@pytest.mark.parametrize("kernel", ["dense", "compiled"])
def test_a_network_that_grows_and_prunes_trains_as_by_torchs_operations(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained_weights(kernel, monkeypatch, looped=False)
    for name, weight in trained_weights(kernel, monkeypatch, looped=True).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-9, atol=1e-12)


def trained_weights(kernel: str, monkeypatch: pytest.MonkeyPatch, *, looped: bool) -> dict[str, Tensor]:
    """Weights, zero where no connection exists, after three replacements of a part of the connections under Adam."""
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 3)), torch.zeros(1, 20)).double()
    network.use_kernels(lambda case: kernel, 16)
    optimizer = Adam(network.parameters(), lr=0.01)
    network.attach(optimizer)
    draw, x = np.random.default_rng(0), torch.randn(16, 20, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.delattr(aged, "by_operations" if looped else "_by_loop")
        if not looped:
            patch.setattr(aged, "available", lambda: False)
        for _ in range(3):
            positions = {layer.layer: layer.positions() for layer in network.topology.layers}
            network.prune_connections({name: np.sort(draw.choice(held, len(held) // 3, replace=False)) for name, held in positions.items()})
            absent = {layer.layer: np.setdiff1d(np.arange(layer.possible), layer.positions()) for layer in network.topology.layers}
            network.grow_connections({name: free[::3] for name, free in absent.items()})
            for _ in range(5):
                optimizer.zero_grad()
                network(x).square().mean().backward()
                optimizer.step()
    assert any(len(state[BIRTH].unique()) > 2 for state in optimizer.state.values() if BIRTH in state)
    return {name: layer.dense_weight() for name, layer in network.layers.items()}

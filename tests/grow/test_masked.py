"""A gradient is cleared where the mask is zero: by a loop where numba is loaded, by torch's operations elsewhere, to the same bits."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from grow.kernels import compiled, dense, lines


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.skipif(not compiled.available(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 5), (6, 3, 2, 2), (300, 257)], ids=str)
def test_the_loop_and_torchs_operations_clear_the_same_bits(
    shape: tuple[int, ...], dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, mask = torch.randn(shape, generator=generator, dtype=dtype), torch.rand(shape, generator=generator) < 0.5
    gradient.view(-1)[::5] = -0.0
    gradient.view(-1)[::7] = float("nan")
    expected = gradient.clone()
    dense.by_operations(expected, mask)
    assert expected.nan_to_num(0)[~mask].eq(0).all()
    for count in (1, 2):
        threads(count)
        found = gradient.clone()
        dense.by_loop(found, mask)
        bits = torch.int32 if dtype == torch.float32 else torch.int64
        assert torch.equal(found.view(bits), expected.view(bits))


@pytest.mark.parametrize("loaded", [True, False])
def test_numba_is_not_imported_for_a_mask(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "loops_are_loaded", lambda: loaded)
    if not (loaded and compiled.available()):
        monkeypatch.delattr(dense, "by_loop")
    weight, mask = torch.ones(2, 2, requires_grad=True), torch.tensor([[True, False], [False, True]])
    (dense.masked(weight, mask) @ torch.eye(2)).sum().backward()
    assert isinstance(weight.grad, Tensor)
    assert torch.equal(weight.grad, mask.float())


def test_loops_are_loaded_once_the_loops_are() -> None:
    assert lines.loops_are_loaded() or not compiled.available()


def test_many_gradients_at_once_are_cleared_as_well() -> None:
    weight, mask, x = torch.randn(3, 4, requires_grad=True), torch.rand(3, 4) < 0.5, torch.randn(4)

    def product(held: Tensor) -> Tensor:
        return dense.masked(held, mask) @ x

    found = torch.autograd.functional.jacobian(product, weight, vectorize=True)
    assert isinstance(found, Tensor)
    assert torch.equal(found, torch.autograd.functional.jacobian(product, weight))
    assert found[:, ~mask].eq(0).all()

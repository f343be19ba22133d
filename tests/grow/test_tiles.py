"""Loops for the registers of another machine than this one compute the same: LLVM splits their vectors as it must."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, random_array

from grow.kernels import KERNELS, compiled, loops, registers, stack, stack_loops, tiles

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


@pytest.fixture(params=[True, False], ids=["AVX-512", "AVX2"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The registers that the loops are made for."""
    monkeypatch.setattr(registers, "wide", lambda: request.param)
    caches = (loops.loops, loops._loops, stack_loops.layer_on_tile)
    for kept in caches:
        kept.cache_clear()
    yield request.param
    for kept in caches:
        kept.cache_clear()


def test_the_compiled_product_and_its_gradients_are_the_dense_ones(wide: bool) -> None:
    generator = np.random.default_rng(0)
    positions = torch.from_numpy(np.flatnonzero(generator.random(70 * 50) < 0.2))
    seen = set()
    for batch in (16, 64, 128, 200):
        seen.add(loops.loops(torch.float32, batch).tile)
        x, upstream = torch.randn(batch, 50, requires_grad=True), torch.randn(batch, 70)
        weight = torch.randn(len(positions), requires_grad=True)
        KERNELS["compiled"].prepare(positions, (70, 50))(x, weight, None).backward(upstream)
        dense = torch.zeros(70 * 50, dtype=torch.float64).index_put((positions,), weight.detach().double()).reshape(70, 50)
        of_weight = (upstream.double().T @ x.detach().double()).reshape(-1)[positions]
        for found, exact in ((x.grad, upstream.double() @ dense), (weight.grad, of_weight)):
            assert found is not None
            assert (found - exact).norm() <= 1e-5 * exact.norm()
    assert max(seen) * 4 == max(tiles.tiles_here()) == (512 if wide else 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_is_turned_whatever_its_shape(wide: bool, dtype: torch.dtype) -> None:
    turn = loops.loops(dtype, 64).transposed
    for rows, columns, before, after in (
        (1, 1, 0, 0),
        (16, 40, 3, 0),
        (40, 16, 0, 5),
        (7, 50, 1, 1),
        (50, 7, 0, 0),
        (0, 5, 0, 0),
        (33, 33, 0, 2),
    ):
        source, target = torch.randn(rows, columns + before, dtype=dtype), torch.full((columns, rows + after), 7.0, dtype=dtype)
        turn(rows, columns, source.data_ptr(), columns + before, target.data_ptr(), rows + after)
        assert torch.equal(target[:, :rows], source[:, :columns].t())
        assert (target[:, rows:] == 7).all()


def test_a_stack_is_what_its_layers_compute_one_after_the_other(wide: bool) -> None:
    generator = np.random.default_rng(0)
    rows = random_array((16, 64), density=0.3, rng=generator, dtype=np.float32).toarray()
    weight = csr_array(np.concatenate([np.repeat(rows, 3, axis=0), rows]))  # each row four times: blocks of four
    single = csr_array(random_array((64, 64), density=0.2, rng=generator, dtype=np.float32))
    layers = [stack.StackLayer.of(weight, -0.1, 32.0), stack.StackLayer.of(single, -0.2, 32.0)]
    assert [blocks.rows for layer in layers for blocks in layer.blocks] == [4, 1]
    inputs = csr_array(random_array((100, 64), density=0.4, rng=generator, dtype=np.float32))
    alive, found = stack.alive_after(layers, inputs)
    exact = inputs.toarray().astype(np.float64)
    for matrix, bias in ((weight, -0.1), (single, -0.2)):
        exact = np.clip(exact @ matrix.toarray().T.astype(np.float64) + bias, 0, 32)
    assert len(alive) > 50
    np.testing.assert_allclose(found, exact[alive], rtol=1e-5, atol=1e-5)
    assert not exact[np.setdiff1d(np.arange(100), alive)].any()

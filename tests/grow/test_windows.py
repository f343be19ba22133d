"""Convolutions without patches: of single connections, and of the channels that are left."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from grow.kernels import KERNELS, Kernel, windows
from grow.kernels.base import Geometry, any_structure
from grow.kernels.windows import Grid
from grow.layers import SparseConv2d
from tests.contracts.convolution import ConvolutionContract

SIDE = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Geometry, tuple[int, int]]:
    """A convolution that has an output, and the size of a map."""
    kernel, dilation = draw(SIDE), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding, size = draw(st.tuples(st.integers(0, 3), st.integers(0, 3))), draw(st.tuples(st.integers(5, 8), st.integers(5, 8)))
    return Geometry((draw(st.integers(1, 3)), draw(st.integers(1, 3)), *kernel), draw(SIDE), padding, dilation), size


def results(function, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, *parameters)]
    y = function(*leaves)
    weights = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape) % 7 - 3
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), leaves))


@pytest.mark.parametrize("kernel", ["compiled", "columns"])
@settings(max_examples=30, deadline=None)
@given(convolution=convolutions(), batch=st.integers(1, 3), density=st.sampled_from([0.2, 0.6, 1.0]), seed=st.integers(0, 99))
def test_a_convolution_without_patches_is_the_dense_one_with_all_its_gradients(
    kernel: str, convolution: tuple[Geometry, tuple[int, int]], batch: int, density: float, seed: int
) -> None:
    geometry, size = convolution
    if kernel == "compiled":
        geometry = Geometry(geometry.shape, (1, 1), geometry.padding, geometry.dilation)
    live = np.random.default_rng(seed).random(geometry.shape) < density
    live.flat[seed % live.size] = True
    positions = torch.from_numpy(np.flatnonzero(live))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, geometry.shape[1], *size, dtype=torch.float64, generator=generator)
    values, bias = (torch.randn(n, dtype=torch.float64, generator=generator) for n in (len(positions), geometry.shape[0]))

    def dense(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        weight = values.new_zeros(live.size).index_put((positions,), values).reshape(geometry.shape)
        return functional.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)

    make = KERNELS[kernel].convolution
    assert make is not None
    convolve = make(positions, geometry)
    assert convolve is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WASTE", 1e9)  # small maps waste most of a tile
        found = results(convolve, x, values, bias)
    torch.testing.assert_close(found, results(dense, x, values, bias), rtol=1e-12, atol=1e-12)


class TestConvolutions(ConvolutionContract):
    @pytest.fixture(params=[name for name, kernel in KERNELS.items() if kernel.fits is any_structure])
    def kernel(self, request: pytest.FixtureRequest) -> Kernel:
        return KERNELS[request.param]


def test_channels_without_connections_are_not_computed() -> None:
    geometry = Geometry((4, 3, 3, 3), (1, 1), (1, 1), (1, 1))
    live = np.zeros(geometry.shape, bool)
    live[np.ix_([0, 2], [1])] = True  # two of four outputs read one of three inputs
    convolve = KERNELS["columns"].convolution(torch.from_numpy(np.flatnonzero(live)), geometry)
    x, bias = torch.randn(2, 3, 5, 5), torch.arange(4.0)
    values = torch.randn(18)
    with torch.profiler.profile(record_shapes=True) as profile:
        y = convolve(x, values, bias)
    (shapes,) = [event.input_shapes[:2] for event in profile.events() if event.name == "aten::conv2d"]
    assert shapes == [[2, 1, 5, 5], [2, 1, 3, 3]]
    assert torch.equal(y[:, [1, 3]], bias[[1, 3], None, None].expand(2, 2, 5, 5))


def test_a_line_has_zeros_for_every_window_that_reaches_over_an_edge() -> None:
    grid = Grid.of(2, (2, 3), (3, 3), (1, 1), (1, 1), torch.float32)
    assert (grid.outputs, grid.pitch, grid.margin) == ((2, 3), (3, 4), 5)
    lines = grid.room(1, torch.zeros(0))
    grid.maps(lines, 1, grid.size).copy_(torch.arange(1.0, 13.0).reshape(2, 1, 2, 3))
    shown = lines[5:29].reshape(2, 3, 4).tolist()
    assert shown[0] == [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    assert shown[1] == [[7, 8, 9, 0], [10, 11, 12, 0], [0, 0, 0, 0]]


def test_maps_of_which_little_is_kept_are_computed_by_patches() -> None:
    layer = SparseConv2d(torch.randn(2, 3, 5, 5), None, (1, 1), (0, 0), (1, 1))
    positions = np.arange(0, 150, 3)
    values = layer.weight.detach().reshape(-1)[torch.from_numpy(positions)]
    layer.restructure((2, 3, 5, 5), positions, "compiled", nn.Parameter(values))
    x = torch.randn(8, 3, 5, 5)  # one position of twenty-five
    assert layer._without_patches(x) is None
    torch.testing.assert_close(layer(x), functional.conv2d(x, layer.dense_weight()))

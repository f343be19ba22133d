"""What a kernel keeps in convolutions: they are torch's own of the masked weight, with all gradients. Subclass, supply `kernel`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from grow.kernels import Kernel, windows
from grow.layers import SparseConv2d

SHAPE, PADDING = (5, 3, 3, 3), (1, 1)
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Of the relative error: a weight's gradient is a sum over 576 positions."""

CONNECTIONS = {
    "some": np.sort(np.random.default_rng(0).choice(135, 40, replace=False)),
    "one": np.array([70]),
    "none": np.array([], np.int64),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(layout: str, *shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Random maps (B, C, H, W) that lie in memory as said."""
    match layout:
        case "channels last":
            return draw(*shape, seed=seed).to(dtype).contiguous(memory_format=torch.channels_last)
        case "every second pixel":
            return draw(*shape[:2], 2 * shape[2], 2 * shape[3], seed=seed).to(dtype)[..., ::2, ::2]
    return draw(*shape, seed=seed).to(dtype)


def layer_of(kernel: Kernel, index: np.ndarray, stride: int, dtype: torch.dtype) -> SparseConv2d:
    """A convolution with these connections, in the kernel's storage."""
    positions, values = torch.from_numpy(index), draw(len(index), seed=1).to(dtype)
    bias = nn.Parameter(draw(SHAPE[0], seed=2).to(dtype))
    layer = SparseConv2d(torch.zeros(SHAPE, dtype=dtype), bias, (stride, stride), PADDING, (1, 1))
    weight = torch.zeros(135, dtype=dtype).index_put((positions,), values).reshape(SHAPE)
    layer.restructure(SHAPE, index, kernel.name, nn.Parameter(values if kernel.storage == "compressed" else weight))
    return layer


def results(layer: SparseConv2d, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and gradients of x, connections and bias."""
    layer.zero_grad()
    source = x.detach().requires_grad_()
    y = layer(source)
    y.backward(upstream)
    index = layer.index()
    assert index is not None
    assert layer.weight.grad is not None
    weights = layer.weight.grad if layer.storage == "compressed" else layer.weight.grad.flatten()[torch.from_numpy(index)]
    assert source.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    return [y.detach(), source.grad, weights, layer.bias.grad]


def truth(layer: SparseConv2d, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The same by torch's convolution of the masked weight in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, layer.dense_weight(), layer.bias) if leaf is not None]
    y = functional.conv2d(*leaves, layer.stride, layer.padding)
    dx, dweight, dbias = torch.autograd.grad(y, leaves, upstream.double())
    return [y.detach(), dx, dweight.flatten()[torch.from_numpy(layer.index())], dbias]


class ConvolutionContract:
    @pytest.fixture
    def kernel(self) -> Kernel:
        raise NotImplementedError("supply the kernel under test")

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("layout", ["row-major", "channels last", "every second pixel"])
    def test_a_convolution_and_its_gradients_are_those_of_the_masked_one_and_repeat_every_bit(
        self, kernel: Kernel, stride: int, layout: str
    ) -> None:
        for index in CONNECTIONS.values():
            for dtype, bound in BOUNDS.items():
                layer = layer_of(kernel, index, stride, dtype)
                x = laid_out(layout, 4, 3, 12, 12, seed=3, dtype=dtype)
                upstream = laid_out(layout, 4, 5, 12 // stride, 12 // stride, seed=4, dtype=dtype)
                assert x.is_contiguous() == (layout == "row-major")
                if kernel.convolution is not None and len(index) and stride == 1:  # on its own way, not by patches
                    assert layer._without_patches(x) is not None
                found, again = results(layer, x, upstream), results(layer, x, upstream)
                for ours, second, oracle in zip(found, again, truth(layer, x, upstream), strict=True):
                    assert ours.dtype == dtype
                    assert torch.equal(ours, second)
                    assert (ours.double() - oracle).norm() <= bound * oracle.norm()

    def test_gradients_of_a_convolution_agree_with_finite_differences(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(windows, "WASTE", 1e9)  # so small a map wastes most of a tile
        layer = layer_of(kernel, np.array([3, 30, 70]), 1, torch.float64)

        def y(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

        assert layer.bias is not None
        weight = layer.weight.detach().clone().requires_grad_(kernel.storage == "compressed")
        assert gradcheck(y, (draw(1, 3, 3, 2, seed=5).requires_grad_(), weight, layer.bias.detach().clone().requires_grad_()))

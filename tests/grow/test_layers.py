from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from grow.kernels import KERNELS
from grow.kernels.base import any_structure
from grow.layers import SparseConv2d, SparseLinear, expand, sparse_layer

ANY_STRUCTURE = [name for name, kernel in KERNELS.items() if kernel.fits is any_structure]
"""Kernels that compute whatever connections there are."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def restructured(layer: SparseLinear | SparseConv2d, positions: list[int], kernel: str) -> SparseLinear | SparseConv2d:
    """The layer with only these connections, in the kernel's storage."""
    index = np.array(positions, np.int64)
    values = layer.weight.detach().reshape(-1)[torch.from_numpy(index)]
    weight = values if KERNELS[kernel].storage == "compressed" else expand(values, torch.from_numpy(index), layer.weight_shape)
    layer.restructure(layer.weight_shape, index, kernel, nn.Parameter(weight.clone()))
    return layer


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, list[int]]:
    """A convolution and some of its connections, none and all among them."""
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride, padding, dilation = ((draw(st.integers(low, 2)), draw(st.integers(low, 2))) for low in (1, 0, 1))
    module = nn.Conv2d(draw(st.integers(1, 2)), draw(st.integers(1, 3)), kernel, stride, padding, dilation, bias=draw(st.booleans()))
    live = draw(st.lists(st.booleans(), min_size=module.weight.numel(), max_size=module.weight.numel()))
    return module.double(), np.flatnonzero(live).tolist()


@pytest.mark.parametrize("kernel", ANY_STRUCTURE)
@settings(max_examples=40, deadline=None)
@given(convolution=convolutions())
def test_a_sparse_convolution_is_the_masked_dense_one_with_all_its_gradients(kernel: str, convolution: tuple[nn.Conv2d, list[int]]) -> None:
    module, positions = convolution
    layer = restructured(sparse_layer(module), positions, kernel)
    assert isinstance(layer, SparseConv2d)
    x, oracle_x = (draw(2, module.in_channels, 6, 7).requires_grad_() for _ in range(2))
    dense = layer.dense_weight().clone().requires_grad_()
    expected = functional.conv2d(oracle_x, dense, layer.bias, layer.stride, layer.padding, layer.dilation)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)

    upstream = draw(*expected.shape, seed=1)
    y.backward(upstream)
    bias_gradient = None if layer.bias is None else layer.bias.grad.clone()
    layer.zero_grad()
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, oracle_x.grad, rtol=1e-12, atol=1e-12)
    if layer.bias is not None:
        torch.testing.assert_close(bias_gradient, layer.bias.grad, rtol=1e-12, atol=1e-12)
    layer.zero_grad()
    layer(x).backward(upstream)
    found = layer.weight.grad if layer.storage == "compressed" else layer.weight.grad.reshape(-1)[positions]
    torch.testing.assert_close(found, dense.grad.reshape(-1)[positions], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ANY_STRUCTURE)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("positions", [[0, 5, 11], []], ids=["connections", "none"])
def test_a_convolution_of_no_samples_has_an_empty_output_and_gradients_of_zero(kernel: str, stride: int, positions: list[int]) -> None:
    module = nn.Conv2d(2, 3, 3, stride, padding=1)
    layer, x = restructured(sparse_layer(module), positions, kernel), torch.zeros(0, 2, 6, 7, requires_grad=True)
    y = layer(x)
    assert y.shape == module(x).shape
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad.shape, layer.weight.grad.shape) == (x.shape, layer.weight.shape)
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


@pytest.mark.parametrize("kernel", ANY_STRUCTURE)
def test_a_layer_counts_its_connections_and_shows_its_weight(kernel: str) -> None:
    module = nn.Linear(4, 3)
    layer = restructured(sparse_layer(module), [0, 5, 11], kernel)
    assert (layer.connections, layer.density) == (3, 0.25)
    assert layer.index().tolist() == [0, 5, 11]
    expected = torch.zeros(12)
    expected[[0, 5, 11]] = module.weight.detach().reshape(-1)[[0, 5, 11]]
    assert torch.equal(layer.dense_weight(), expected.reshape(3, 4))
    assert not layer.dense_weight().requires_grad


def test_memory_of_a_compressed_layer_grows_with_its_connections() -> None:
    layer = restructured(sparse_layer(nn.Linear(100, 100)), [0, 1, 2], "csr")
    held = [*layer.parameters(), *layer.buffers()]
    assert sum(tensor.numel() for tensor in held) == 3 + 3 + 100  # values, positions, bias


@pytest.mark.parametrize("kernel", ANY_STRUCTURE)
@pytest.mark.parametrize("module", [nn.Linear(4, 3), nn.Conv2d(2, 3, 3)], ids=["linear", "convolution"])
def test_a_layer_goes_to_another_dtype_with_its_structure(kernel: str, module: nn.Linear | nn.Conv2d) -> None:
    layer = restructured(sparse_layer(module), list(range(0, prod(module.weight.shape), 2)), kernel)
    x = draw(2, 4) if isinstance(module, nn.Linear) else draw(2, 2, 5, 5)
    before = layer(x.float())
    after = layer.double()(x)
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before)


SPARSE = [name for name in ANY_STRUCTURE if KERNELS[name].storage == "compressed"]


@pytest.mark.parametrize("kernel", SPARSE)
def test_a_sparse_layer_refuses_what_a_dense_one_does(kernel: str) -> None:
    linear, convolution = restructured(sparse_layer(nn.Linear(4, 3)), [0, 5, 11], kernel), nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"dtype of x is torch.float64, but must be the weight.s, torch.float32"):
        linear(draw(2, 4))
    with pytest.raises(ValueError, match="x has 6 features, but must have 4"):
        linear(draw(2, 6).float())
    maps = restructured(sparse_layer(convolution), [0, 5, 11], kernel)
    with pytest.raises(ValueError, match=r"dtype of x is torch.float64, but must be the weight.s, torch.float32"):
        maps(draw(2, 2, 12, 12))
    for shape in ((2, 1, 12, 12), (2, 6, 6)):
        with pytest.raises(ValueError, match=rf"shape of x is \({str(shape)[1:-1]}\), but must be \(batch, 2, height, width\)"):
            maps(draw(*shape).float())
    with torch.autocast("cpu", torch.bfloat16):  # converts, as torch's own layers are converted
        assert linear(draw(2, 4).float()).dtype == maps(draw(2, 2, 12, 12).float()).dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", ["csr", "compiled"])
def test_a_layer_that_went_to_a_dtype_its_kernel_does_not_know_says_so(kernel: str) -> None:
    layer = restructured(sparse_layer(nn.Linear(4, 3)), [0, 5, 11], kernel)
    layer.prepare()
    with pytest.raises(ValueError, match=f"dtype of the weight is torch.bfloat16, but must be one of .* for kernel '{kernel}'"):
        layer.bfloat16()(draw(2, 4).bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", SPARSE)
def test_a_layer_goes_to_a_gpu_with_the_product_that_was_prepared(kernel: str) -> None:
    layer, x = restructured(sparse_layer(nn.Linear(4, 3)), [0, 5, 11], kernel), draw(2, 4).float()
    torch.testing.assert_close(layer(x), layer.cuda()(x.cuda()).cpu())

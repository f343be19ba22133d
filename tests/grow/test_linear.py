from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.kernels import linear as products
from grow.kernels import registers
from grow.kernels.linear import input_gradient, library, linear, weight_gradient
from grow.layers import SparseLinear

BATCH, ROWS, COLUMNS = 257, 301, 290
"""More multiplications than `products.SMALLEST`, and multiples of no vector's length."""

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor."""
    monkeypatch.setattr(products, "library", lambda: "oneDNN")


def operands(strided: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """X, weight and bias, so scaled that outputs are near 1."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((BATCH, COLUMNS), (ROWS, COLUMNS), (ROWS,)))
    weight /= COLUMNS**0.5
    return (x.t().contiguous().t(), weight.repeat(1, 2)[:, :COLUMNS], bias) if strided else (x, weight, bias)


def graph(y: Tensor) -> str:
    assert y.grad_fn is not None
    return type(y.grad_fn).__name__


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_large_product_and_its_gradients_are_those_of_float64(strided: bool, biased: bool) -> None:
    given = [tensor.requires_grad_() for tensor in operands(strided)[: 2 + biased]]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    y, wanted = linear(*given[:2], given[2] if biased else None), functional.linear(*exact)
    assert graph(y) == "_LinearBackward"
    upstream = torch.randn(BATCH, ROWS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-5)
    found, oracle = torch.autograd.grad(y, given, upstream), torch.autograd.grad(wanted, exact, upstream.double())
    for ours, true in zip(found, oracle, strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-6, atol=1e-4)


def test_the_gradients_on_their_own_are_those_of_autograd() -> None:
    x, weight, _ = operands()
    x.requires_grad_(), weight.requires_grad_()
    upstream = torch.randn(BATCH, ROWS)
    of_x, of_weight = torch.autograd.grad(linear(x, weight, None), (x, weight), upstream)
    assert torch.equal(input_gradient(upstream, weight.detach()), of_x)
    assert torch.equal(weight_gradient(upstream, x.detach()), of_weight)


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x,
        lambda x: x.t().contiguous().t(),
        lambda x: x.repeat(1, 2)[:, :ROWS],
        lambda x: x.repeat_interleave(2, 1)[:, ::2],
        lambda x: x[:1].expand_as(x),
        lambda x: x[:, :1].expand_as(x),
    ],
)
def test_the_gradient_of_a_weight_is_the_same_however_its_upstream_lies_in_memory(strided: Callable[[Tensor], Tensor]) -> None:
    x, upstream = torch.randn(BATCH, COLUMNS), strided(torch.randn(BATCH, ROWS))
    assert torch.equal(weight_gradient(upstream, x), weight_gradient(upstream.contiguous(), x))
    torch.testing.assert_close(weight_gradient(upstream, x).double(), upstream.t().double() @ x.double(), rtol=1e-6, atol=1e-4)


def test_a_small_product_is_torchs_own() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in operands())
    y = linear(x[:9], weight, bias)
    assert graph(y) == "AddmmBackward0"
    assert torch.equal(y, functional.linear(x[:9], weight, bias))


def test_a_second_run_has_the_same_bits() -> None:
    x, weight, bias = operands()
    assert torch.equal(linear(x, weight, bias), linear(x, weight, bias))


def test_gradients_are_differentiated_in_turn() -> None:
    x, weight, _ = operands()
    direction = torch.randn(ROWS, COLUMNS)

    def curvature(product: type[functional.linear] | object, dtype: torch.dtype) -> Tensor:
        """Hessian times direction, of a loss of third degree in the weight."""
        at = weight.to(dtype).requires_grad_()
        loss = product(x.to(dtype), at, None).pow(3).mean()  # type: ignore[operator]
        (first,) = torch.autograd.grad(loss, at, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), at)[0]

    torch.testing.assert_close(curvature(linear, torch.float32).double(), curvature(functional.linear, torch.float64), rtol=1e-4, atol=1e-5)


def test_a_frozen_weight_has_no_gradient_and_its_input_one() -> None:
    x, weight, bias = operands()
    linear(x.requires_grad_(), weight, bias).sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_its_own_dtype() -> None:
    x, weight, bias = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_a_dense_layer_computes_so_and_a_trace_or_compiled_graph_of_it_does_not() -> None:
    x, weight, bias = operands()
    layer = SparseLinear(nn.Parameter(weight), nn.Parameter(bias))
    own = layer(x)
    assert graph(own) == "_LinearBackward"
    traced = fx.symbolic_trace(nn.Sequential(layer))(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert graph(traced) == graph(compiled) == "AddmmBackward0"
    torch.testing.assert_close(own, traced)
    torch.testing.assert_close(own, compiled)


def test_the_processor_decides_and_an_unknown_one_gets_torchs_product(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for vendor in ("AuthenticAMD", "GenuineIntel", ""):
        for wide in (True, False):
            monkeypatch.setattr(products, "_vendor", lambda vendor=vendor: vendor)
            monkeypatch.setattr(registers, "wide", lambda wide=wide: wide)
            found[vendor, wide] = library.__wrapped__()
    assert [case for case, name in found.items() if name == "oneDNN"] == [("AuthenticAMD", True)]
    assert set(found.values()) == {"oneDNN", "torch"}

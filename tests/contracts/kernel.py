"""What every kernel keeps: it is the masked dense product, in its output and in all gradients. Subclass, supply the fixture `kernel`.

A kernel that is made for some structures says which by ``structures``, and gives one of them, of 4 connections, as ``example``.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from grow.kernels import Kernel

LAYOUTS = ("row-major", "feature-major", "every second entry", "one sample for all")


@st.composite
def structures(draw: st.DrawFn) -> tuple[tuple[int, int], Tensor]:
    """A shape (O, I) and sorted positions in it: empty rows and columns, empty and full layers among them."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    live = np.frombuffer(draw(st.binary(min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])), np.uint8) % 2
    return shape, torch.from_numpy(np.flatnonzero(live))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(layout: str, batch: int, features: int, seed: int = 0) -> Tensor:
    """Random values (B, F) that lie in memory as said."""
    match layout:
        case "feature-major":
            return draw(features, batch, seed=seed).t()
        case "every second entry":
            return draw(2 * batch, 2 * features, seed=seed)[::2, ::2]
        case "one sample for all":
            return draw(1, features, seed=seed).expand(batch, features)
    return draw(batch, features, seed=seed)


def stored(kernel: Kernel, values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight as the kernel wants it, from the values of the connections."""
    if kernel.storage == "compressed":
        return values.clone()
    return torch.zeros(shape[0] * shape[1], dtype=values.dtype).index_put((positions,), values).reshape(shape)


def of_connections(kernel: Kernel, gradient: Tensor, positions: Tensor) -> Tensor:
    return gradient if kernel.storage == "compressed" else gradient.reshape(-1)[positions]


class KernelContract:
    structures: st.SearchStrategy[tuple[tuple[int, int], Tensor]] = structures()
    example: tuple[tuple[int, int], tuple[int, ...]] = ((3, 4), (0, 2, 5, 7))  # the last row is empty
    wide: tuple[tuple[int, int], tuple[int, ...]] = (130, 200), tuple(np.random.default_rng(0).choice(26_000, 2_600, replace=False))

    @pytest.fixture
    def kernel(self) -> Kernel:
        raise NotImplementedError("supply the kernel under test")

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(
        data=st.data(),
        batch=st.sampled_from([1, 4, 64, 150]),
        with_bias=st.booleans(),
        layout=st.sampled_from(LAYOUTS),
        upstream_layout=st.sampled_from(LAYOUTS),
    )
    def test_output_and_gradients_are_those_of_the_masked_dense_product(
        self,
        kernel: Kernel,
        data: st.DataObject,
        batch: int,
        with_bias: bool,
        layout: str,
        upstream_layout: str,
    ) -> None:
        shape, positions = data.draw(self.structures)
        values = draw(len(positions), seed=1)
        x = laid_out(layout, batch, shape[1]).requires_grad_()
        weight = stored(kernel, values, positions, shape).requires_grad_()
        bias = draw(shape[0], seed=2).requires_grad_() if with_bias else None
        oracle_x, oracle_values = x.detach().clone().requires_grad_(), values.clone().requires_grad_()
        dense = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_put((positions,), oracle_values).reshape(shape)
        expected = oracle_x @ dense.T + (0 if bias is None else bias.detach())
        upstream = laid_out(upstream_layout, batch, shape[0], seed=3)

        y = kernel.prepare(positions, shape)(x, weight, bias)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        y.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(x.grad, oracle_x.grad, rtol=1e-12, atol=1e-12)
        assert weight.grad is not None
        torch.testing.assert_close(of_connections(kernel, weight.grad, positions), oracle_values.grad, rtol=1e-12, atol=1e-12)
        if kernel.storage == "dense":  # what does not exist gets no gradient, so that no optimizer can bring it back
            assert torch.count_nonzero(weight.grad) == torch.count_nonzero(weight.grad.reshape(-1)[positions])
        if bias is not None:
            torch.testing.assert_close(bias.grad, upstream.sum(0), rtol=1e-12, atol=1e-12)

    def test_gradients_agree_with_finite_differences(self, kernel: Kernel) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        product = kernel.prepare(positions, shape)
        values = draw(len(positions), seed=1).requires_grad_()

        def y(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
            dense = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_put((positions,), values).reshape(shape)
            return product(x, values if kernel.storage == "compressed" else dense, bias)

        assert gradcheck(y, (draw(2, shape[1]).requires_grad_(), values, draw(shape[0], seed=2).requires_grad_()))

    def test_an_input_without_gradient_and_a_frozen_weight_are_fine(self, kernel: Kernel) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        product, weight = kernel.prepare(positions, shape), stored(kernel, draw(len(positions)), positions, shape)
        x, trained = draw(2, shape[1]).requires_grad_(), weight.clone().requires_grad_()
        product(x.detach(), trained, None).sum().backward()
        product(x, weight, None).sum().backward()
        assert trained.grad is not None
        assert x.grad is not None

    def test_a_batch_without_samples_has_an_empty_output_and_gradients_of_zero(self, kernel: Kernel) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        x, weight = draw(0, shape[1]).requires_grad_(), stored(kernel, draw(len(positions)), positions, shape).requires_grad_()
        y = kernel.product(positions, shape)(x, weight, draw(shape[0]))
        y.sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        assert (y.shape, x.grad.shape) == ((0, shape[0]), (0, shape[1]))
        assert not weight.grad.any()

    def test_what_does_not_fit_the_weight_is_refused(self, kernel: Kernel) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        product, weight = kernel.product(positions, shape), stored(kernel, draw(len(positions)), positions, shape)
        for features in (shape[1] - 1, shape[1] + 1):
            with pytest.raises(ValueError, match=f"x has {features} features, but must have {shape[1]}"):
                product(draw(2, features), weight, None)
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(ValueError, match=f"dtype of x is {dtype}, but must be the weight's, torch.float64"):
                product(draw(2, shape[1]).to(dtype), weight, None)
            with pytest.raises(ValueError, match=f"dtype of the bias is {dtype}, but must be the weight's, torch.float64"):
                product(draw(2, shape[1]), weight, draw(shape[0]).to(dtype))
        with pytest.raises(ValueError, match=r"device of x is meta, but must be the weight's, cpu"):
            product(draw(2, shape[1]).to("meta"), weight, None)

    @pytest.mark.parametrize("with_bias", [False, True])
    def test_the_output_may_be_changed_in_place(self, kernel: Kernel, with_bias: bool) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        weight = stored(kernel, draw(len(positions)), positions, shape).requires_grad_()
        product = kernel.prepare(positions, shape)
        product(draw(2, shape[1]), weight, draw(shape[0]) if with_bias else None).relu_().sum().backward()
        assert weight.grad is not None

    def test_every_declared_dtype_is_computed_in_that_dtype_as_exactly_as_it_can_hold(self, kernel: Kernel) -> None:
        shape, positions = self.example[0], torch.tensor(self.example[1])
        for dtype in kernel.dtypes:
            x, values, bias, upstream = (
                draw(*size, seed=seed).to(dtype) for seed, size in enumerate(((5, shape[1]), (len(positions),), (shape[0],), (5, shape[0])))
            )
            leaves = [leaf.requires_grad_() for leaf in (x, stored(kernel, values, positions, shape), bias)]
            y = kernel.product(positions, shape)(*leaves)
            y.backward(upstream)
            exact = [leaf.detach().double().requires_grad_() for leaf in (x, values, bias)]
            dense = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_put((positions,), exact[1]).reshape(shape)
            truth = exact[0] @ dense.T + exact[2]
            truth.backward(upstream.double())
            for ours, oracle in zip((y, *(leaf.grad for leaf in leaves)), (truth, *(leaf.grad for leaf in exact)), strict=True):
                assert ours is not None
                assert oracle is not None
                assert ours.dtype == dtype
                found = of_connections(kernel, ours, positions) if ours.shape == dense.shape != oracle.shape else ours
                assert (found.double() - oracle).norm() <= 2 * torch.finfo(dtype).eps * oracle.norm()

    def test_a_wide_layer_is_the_dense_one_in_every_dtype_and_a_second_run_repeats_every_bit(self, kernel: Kernel) -> None:
        for dtype in kernel.dtypes:
            self.wide_layer_is_the_dense_one(kernel, dtype)

    def wide_layer_is_the_dense_one(self, kernel: Kernel, dtype: torch.dtype) -> None:
        shape, positions, batch = self.wide[0], torch.tensor(sorted(self.wide[1])), 200
        x, values, upstream = (
            tensor.to(dtype) for tensor in (draw(batch, shape[1]), draw(len(positions), seed=1), draw(batch, shape[0], seed=3))
        )
        dense = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_put((positions,), values.double()).reshape(shape)
        expected = x.double() @ dense.T, upstream.double() @ dense, (upstream.T.double() @ x.double()).reshape(-1)[positions]

        def run() -> tuple[Tensor, Tensor, Tensor]:
            source = x.clone().requires_grad_()
            weight = stored(kernel, values, positions, shape).requires_grad_()
            y = kernel.prepare(positions, shape)(source, weight, None)
            y.backward(upstream)
            assert source.grad is not None
            assert weight.grad is not None
            return y.detach(), source.grad, of_connections(kernel, weight.grad, positions)

        found = run()
        bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
        for ours, oracle in zip(found, expected, strict=True):
            assert (ours - oracle).norm() <= bound * oracle.norm()
        assert all(torch.equal(first, second) for first, second in zip(found, run(), strict=True))

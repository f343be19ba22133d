"""Dense products of linear layers on the CPU, with the library that computes them fastest.

Torch multiplies float32 matrices with MKL, which uses AVX-512 on Intel's processors alone. On AMD's that have it (Zen 4), oneDNN, which
torch brings too, takes a sixth less for outputs and input gradients and a third less for the gradient of a weight (1024, 1040) (one core,
batch 256). Where both use AVX2 (Zen 3), MKL takes a tenth less.

    y = x W^T + b      x' = y' W      W' = y'^T x

A small product costs less than oneDNN's call, so that it stays with torch's; so does all that is not float32 on the CPU, autocast, and a
graph under compilation, whose compiler chooses for itself. Both libraries round to float32 once per addition; their orders differ.

Legend: B batch, O rows, I columns of W.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from grow.kernels import compiled, lines, registers

SMALLEST = 2**24
"""Multiplications up to which torch's own product is as fast: a call of oneDNN takes some 20 us more."""


@cache
def library() -> str:
    """What computes large products on this machine: "oneDNN" where torch has it and AMD made the CPU, with AVX-512; else "torch"."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return "oneDNN" if known and _vendor() == "AuthenticAMD" and registers.wide() else "torch"


def _vendor() -> str:
    """Of the processor, as it names itself; empty where the system does not tell."""
    if platform.system() != "Linux":
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X (B, ..., I), weight (O, I), bias (O,) -> (B, ..., O), as `torch.nn.functional.linear`, which computes all but large products."""
    traced = isinstance(x, fx.Proxy)
    if not traced and x.dim() == 2 and _large(x, weight, len(x) * weight.numel()) and (bias is None or bias.dtype == weight.dtype):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return functional.linear(x, weight, bias)


def input_gradient(upstream: Tensor, weight: Tensor) -> Tensor:
    """Upstream (B, O), weight (O, I) -> (B, I)."""
    if _large(upstream, weight, len(upstream) * weight.numel()):
        return _product(upstream, weight.t(), None)
    return upstream @ weight


def weight_gradient(upstream: Tensor, x: Tensor) -> Tensor:
    """Upstream (B, O), x (B, I) -> (O, I)."""
    if _large(upstream, x, upstream.shape[1] * x.numel()):
        return _product(_turned(upstream), x.t(), None)
    return upstream.t() @ x


def _large(first: Tensor, second: Tensor, multiplications: int) -> bool:
    """Whether oneDNN computes a product of two matrices."""
    return (
        multiplications > SMALLEST
        and first.dtype == second.dtype == torch.float32
        and first.device.type == second.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and library() == "oneDNN"
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Left (M, K), right (N, K) -> (M, N)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(_packed(left), _packed(right), bias, "none", [], "")
    return found


def _turned(matrix: Tensor) -> Tensor:
    """Matrix (M, N) -> (N, M) by rows, as the left side of a product must be: through registers, which takes a fifth of torch's time."""
    if matrix.stride(0) == 1 or matrix.stride(1) != 1 or not compiled.available():
        return matrix.t().contiguous()
    rows, columns = matrix.shape
    turned = matrix.new_empty(columns, rows)
    transposed = lines.loops_of(matrix.dtype, rows).transposed
    transposed(rows, columns, matrix.data_ptr(), matrix.stride(0), turned.data_ptr(), rows)
    return turned


def _packed(matrix: Tensor) -> Tensor:
    """The matrix in memory of its own, by rows or by columns: of others oneDNN takes each number singly."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    """``y = x W^T + b`` and its gradients, each by its own product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """X (B, I), weight (O, I), bias (O,) -> (B, O)."""
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradients need."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        (upstream,), (x, weight) = gradients, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        whole = torch.is_grad_enabled()  # the gradients are to be differentiated in turn
        return (
            (upstream @ weight if whole else input_gradient(upstream, weight)) if of_x else None,
            (upstream.t() @ x if whole else weight_gradient(upstream, x)) if of_weight else None,
            upstream.sum(0) if of_bias else None,
        )

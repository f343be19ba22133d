"""Pooling, norms, activations and sums on one device, forward and backward, on maps that fit into the caches and on such that do not.

Legend: B samples, C units, H, W map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.profile.measurements import OperatorTime
from hardware.sweep.clock import Patience, own_work

SHAPES = ((16, 16, 16, 16), (128, 32, 16, 16))
"""B, C, H, W of the values that go in."""

Operation = Callable[[Tensor], Tensor]


def measure_operators(device: torch.device, dtype: torch.dtype, patience: Patience) -> tuple[OperatorTime, ...]:
    """Every kind of `hardware.operators` at both sizes."""
    found = []
    for shape in SHAPES:
        x = torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)
        for name, operation in _operations(shape[1], device, dtype).items():
            both, forward = _both(operation, x), _forward(operation, x)
            seconds, spread = own_work(both, device, patience)
            found.append(OperatorTime(name, x.numel(), seconds, min(seconds, own_work(forward, device, patience).seconds), spread))
    return tuple(found)


def _operations(units: int, device: torch.device, dtype: torch.dtype) -> Mapping[str, Operation]:
    batch_norm = nn.BatchNorm2d(units, device=device, dtype=dtype)
    return {
        "max_pool": lambda x: functional.max_pool2d(x, 2),
        "avg_pool": lambda x: functional.avg_pool2d(x, 2),
        "batch_norm": batch_norm,
        "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
        "curved": torch.tanh,
        "sum": lambda x: x + x,
        "dropout": lambda x: functional.dropout(x, 0.5),
    }


def _both(operation: Operation, x: Tensor) -> Callable[[], object]:
    upstream = torch.ones_like(operation(x))

    def step() -> None:
        x.grad = None
        operation(x).backward(upstream)  # type: ignore[no-untyped-call,unused-ignore]

    return step


def _forward(operation: Operation, x: Tensor) -> Callable[[], object]:
    def step() -> None:
        with torch.no_grad():
            operation(x)

    return step

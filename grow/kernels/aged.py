"""Adam's update of a tensor whose elements came into being at different steps, each corrected by its own age.

On the CPU one pass of compiled code, which takes two thirds of the time of torch's own Adam. Elsewhere, and without numba, by torch's
operations: they go through the memory sixteen times and take two exponentials of each element, three times as long for hundreds of
elements, and ten for a million.

Legend: N elements, A ages that are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil, log

import numpy as np
import torch
from torch import Tensor

from grow.kernels.compiled import available
from grow.kernels.lines import in_parts

LANES = 32
"""Elements that the loop computes at a time: what it holds of them fits the registers of AVX2."""

MOST_AGES = 2**19
"""More ages than these have no table: float64 tells so many apart where a beta is above 0.9999."""

_LOOPED = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Rule:
    """What an update goes by, as in `torch.optim.Adam` and, ``decoupled``, `torch.optim.AdamW`."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    decay: float
    decoupled: bool


def update(rule: Rule, step: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, birth: Tensor) -> None:
    """The update of that step (), counted from 1, in place: of a parameter and the averages of its gradients and of their squares.

    birth: the step before each element's first one, float32. All have the parameter's shape.

    Kingma and Ba 2015, algorithm 1; decoupled decay as in Loshchilov and Hutter 2019.
    """
    tensors = (parameter, gradient.contiguous(), mean, square, birth)
    if _looped(rule, tensors):
        _by_loop(rule, int(step), tensors)
    else:
        by_operations(rule, step, *tensors)


def by_operations(rule: Rule, step: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, birth: Tensor) -> None:
    """The same by torch's operations, on any device and in any dtype."""
    age = (step - birth).to(parameter.dtype)
    if rule.decoupled:
        parameter.mul_(1 - rule.learning_rate * rule.decay)
    elif rule.decay:
        gradient = gradient.add(parameter, alpha=rule.decay)
    beta1, beta2 = rule.betas
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # 1 - beta^age; the plain difference loses four digits in float32, where beta2 is nearly 1.
    first, second = (torch.expm1(age * log(beta)).neg_() if beta else torch.ones_like(age) for beta in rule.betas)
    denominator = square.sqrt().div_(second.sqrt_()).add_(rule.epsilon)
    parameter.addcdiv_(mean / first, denominator, value=-rule.learning_rate)


def _looped(rule: Rule, tensors: tuple[Tensor, ...]) -> bool:
    """Whether the loop can update them."""
    *values, birth = tensors
    if any(held.device.type != "cpu" or not held.is_contiguous() for held in tensors) or birth.dtype != torch.float32:
        return False
    dtype = values[0].dtype
    alike = dtype in _LOOPED and all(held.dtype == dtype for held in values)
    return alike and told_apart(rule.betas, dtype) <= MOST_AGES and available()


def _by_loop(rule: Rule, step: int, tensors: tuple[Tensor, ...]) -> None:
    from grow.kernels.aged_loops import BLOCK, aged  # numba takes longer to import than all else

    dtype = tensors[0].dtype
    table, most = corrections(rule.betas, dtype)
    (beta1, beta2), rate = rule.betas, rule.learning_rate
    shrunk, pulled = (1 - rate * rule.decay, 0.0) if rule.decoupled else (1.0, rule.decay)
    settings = torch.tensor([1 - beta1, beta2, 1 - beta2, -rate, rule.epsilon, shrunk, pulled, -1.0], dtype=dtype)
    places = [held.data_ptr() for held in (*tensors, table, settings)]

    def part(first: int, last: int) -> None:
        room = torch.empty(2 * BLOCK, dtype=dtype)  # every thread's own
        whole = last - (last - first) % LANES
        aged(dtype, LANES)(first, whole, step, most, *places, room.data_ptr())
        if whole < last:
            aged(dtype, 1)(whole, last, step, most, *places, room.data_ptr())

    in_parts(part, tensors[0].numel(), LANES)


@cache
def told_apart(betas: tuple[float, float], dtype: torch.dtype) -> int:
    """The age from which on no correction differs from 1."""
    least = log(torch.finfo(dtype).eps / 4)
    return max(1 if beta == 0 else ceil(least / log(beta)) for beta in betas)


@cache
def corrections(betas: tuple[float, float], dtype: torch.dtype) -> tuple[Tensor, int]:
    """By age, from 0 to A: 1 / (1 - beta1^age) and 1 / sqrt(1 - beta2^age), (A + 1, 2), and A. Nothing is of age 0: it counts as 1."""
    most = told_apart(betas, dtype)
    age = np.arange(most + 1, dtype=np.float64).clip(min=1)
    first, second = (-np.expm1(age * log(beta)) if beta else np.ones(most + 1) for beta in betas)
    return torch.from_numpy(np.stack([1 / first, 1 / np.sqrt(second)], 1)).to(dtype), most

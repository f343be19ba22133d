"""Adam's update of a tensor whose elements came into being at different steps, each corrected by its own age.

On the CPU one pass of compiled code, which takes 0.6 to 1.3 times as long as torch's own Adam does for elements of one age (300,000 and a
million of them, one thread). Elsewhere, and without numba, torch's operations: they go through the memory sixteen times and take two
exponentials of each element, 15 to 20 times as long for 300,000 elements and twice for 300.

Legend: N elements, A ages that are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import numpy as np
import torch
from torch import Tensor

from grow.kernels.compiled import available
from grow.kernels.lines import in_parts

PASS_BYTES = 128
"""Of a tensor's elements that the loop computes at a time."""

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
    tensors = (parameter, gradient, mean, square, birth)
    if _looped(rule, tensors):
        _by_loop(rule, int(step), tensors)
    else:
        by_operations(rule, step, *tensors)


def by_operations(rule: Rule, step: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, birth: Tensor) -> None:
    """The same by torch's operations, on any device and in any dtype; but for rounding."""
    age = (step - birth).clamp(min=1).to(parameter.dtype)
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
    """Whether the loop can update them: all of one shape, and what is not read alone in one order in memory, without gaps."""
    parameter, gradient, mean, square, birth = tensors
    dtype, shape = parameter.dtype, parameter.shape
    if any(held.device.type != "cpu" or held.shape != shape or held.layout != torch.strided for held in tensors):
        return False
    if dtype not in _LOOPED or any(held.dtype != dtype for held in (gradient, mean, square)) or birth.dtype != torch.float32:
        return False
    if not (parameter.is_contiguous() or (parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last))):
        return False
    if any(held.stride() != parameter.stride() for held in (mean, square, birth)):
        return False
    return max(told_apart(beta, dtype) for beta in rule.betas) <= MOST_AGES and available()


def _by_loop(rule: Rule, step: int, tensors: tuple[Tensor, ...]) -> None:
    # Numba takes longer to import than all else. The steps to come make up for it, and all of them must round alike.
    from grow.kernels.aged_loops import BLOCK, aged

    parameter, gradient, *others = tensors
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    dtype, (beta1, beta2), rate = parameter.dtype, rule.betas, rule.learning_rate
    first_table, second_table = corrections(beta1, dtype), corrections(beta2, dtype, root=True)
    shrunk, pulled = (1 - rate * rule.decay, 0.0) if rule.decoupled else (1.0, rule.decay)
    given = [beta1, 1 - beta1, beta2, 1 - beta2, -rate, rule.epsilon, shrunk, pulled]
    settings = torch.tensor(given, dtype=dtype, device="cpu")
    lanes = PASS_BYTES // dtype.itemsize
    loop, rest = aged(dtype, lanes), aged(dtype, 1)

    def part(first: int, last: int) -> None:
        room = torch.empty(2 * BLOCK, dtype=dtype, device="cpu")  # every thread's own
        places = [held.data_ptr() for held in (parameter, gradient, *others)]
        for table in (first_table, second_table):
            places += [len(table) - 1, table.data_ptr()]
        places += [settings.data_ptr(), room.data_ptr()]
        whole = last - (last - first) % lanes
        loop(first, whole, step, *places)
        if whole < last:
            rest(whole, last, step, *places)

    in_parts(part, parameter.numel(), lanes)


def told_apart(beta: float, dtype: torch.dtype) -> int:
    """A, the age from which on 1 - beta^age does not differ from 1."""
    return 1 if beta == 0 else ceil(log(torch.finfo(dtype).eps / 4) / log(beta))


@lru_cache(maxsize=16)  # schedules may change a beta at every step
def corrections(beta: float, dtype: torch.dtype, root: bool = False) -> Tensor:
    """1 / (1 - beta^age), or its square root, by age from 0 to A, (A + 1,). Nothing is of age 0, which counts as 1."""
    most = told_apart(beta, dtype)
    age = np.arange(most + 1, dtype=np.float64).clip(min=1)
    left = -np.expm1(age * log(beta)) if beta else np.ones(most + 1)
    return torch.from_numpy(1 / (np.sqrt(left) if root else left)).to(dtype)

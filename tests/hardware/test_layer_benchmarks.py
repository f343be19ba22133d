"""Benchmarks of layers: what is timed on either side is a whole training step."""

import pytest
import torch
from torch import nn

from grow.layers import SparseLinear
from tests.benchmarks.sparse_layer import Case, dense, others, ours, step_of
from tests.benchmarks.sparse_layer_gpu import block_sparse


def trained(layer: nn.Module, units: int) -> list[bool]:
    """Of each parameter, whether a step changes it."""
    step = step_of(layer, units, 4)
    before = [parameter.clone() for parameter in layer.parameters()]
    step()
    return [not torch.equal(*pair) for pair in zip(before, layer.parameters(), strict=True)]


def test_every_layer_that_is_compared_trains_its_weight_and_its_bias() -> None:
    case = Case(16, 4, 0.1)
    weight = case.weight()
    compared = [ours(case, weight, "csr"), dense(weight), *(make(weight) for make in others(set(), case).values())]
    assert all(trained(layer, 16) == [True, True] for layer in compared)
    blocks = block_sparse({"units": 64, "batch": 4, "density": 0.5, "block": 32, "dtype": "tf32", "device": "cpu"}, torch.float32)
    assert trained(blocks, 64) == [True, True]


def test_a_step_that_leaves_a_parameter_as_it_is_is_not_timed() -> None:
    layer = SparseLinear(nn.Parameter(torch.randn(4, 4)), torch.zeros(4))
    with pytest.raises(ValueError, match="gradient of bias is None, but must be there after a step"):
        step_of(layer, 4, 2)

"""Benchmarks of layers: what is timed on either side is a whole training step."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from grow.layers import SparseLinear
from tests.benchmarks import sparse_scaling
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


def test_scaling_compares_every_round_with_the_line_through_the_medians_and_a_single_case_with_the_dense_layer() -> None:
    cases = sparse_scaling.CASES[:4]
    line = [2e-4 + 1e-8 * int(case["connections"]) for case in cases]
    rounds = [
        pd.DataFrame({"seconds": [s, 2 * s, s / 2], "dense_seconds": [6 * s, np.nan if n == 3 else 8 * s, 3 * s]})
        for n, s in enumerate(line)
    ]
    found = list(sparse_scaling.rows(cases, rounds))
    assert [row["against"] for row in found] == ["straight line"] * 4
    assert [row["case"]["connections"] for row in found] == [1000, 3162, 10000, 31623]
    for row in found:
        assert [row[key] for key in ("ratio_min", "ratio", "ratio_max")] == pytest.approx([0.5, 1.0, 2.0])
    assert [("dense_seconds" in row) for row in found] == [True, True, True, False]
    (alone,) = sparse_scaling.rows(cases[:1], rounds[:1])
    assert alone["against"] == "dense layer of as many units"
    assert [alone[key] for key in ("ratio_min", "ratio", "ratio_max")] == pytest.approx([4.0, 6.0, 6.0])


def test_a_layer_of_the_scaling_has_as_many_connections_as_its_case_says() -> None:
    layer = sparse_scaling.sparse_layer(3162)
    assert (layer.connections, layer.weight_shape) == (3162, (562, 562))

"""The compiled stack keeps exactly the samples that its layers, one after the other, leave alive."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from grow.kernels import stack
from grow.kernels.stack import StackLayer, alive_after
from grow.seeds.radix import radix_matrices

pytest.importorskip("numba")


def layers(count: int, units: int, fan_in: int, rng: np.random.Generator) -> list[csr_array]:
    dense = np.zeros((count, units, units), np.float32)
    for matrix in dense:
        for row in matrix:
            row[rng.choice(units, fan_in, replace=False)] = rng.choice([0.25, 0.5, -0.25], fan_in)
    return [csr_array(matrix) for matrix in dense]


@pytest.mark.parametrize(("fan_in", "bias"), [(3, -0.05), (8, -0.3), (13, -0.3)])  # fewer, as many and more than are summed at once
def test_the_outcome_is_that_of_dense_products(fan_in: int, bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "CACHE_VALUES", 1)  # tiles of 16 samples
    rng = np.random.default_rng(fan_in)
    found, inputs = layers(5, 20, fan_in, rng), rng.integers(0, 2, (100, 20)) * (rng.random((100, 1)) < 0.7)
    expected = inputs.astype(np.float64)
    for matrix in found:
        expected = np.clip(expected @ matrix.toarray().T + bias, 0, 2)
    alive, activations = alive_after([StackLayer.of(matrix, bias, 2.0) for matrix in found], csr_array(inputs))
    assert 0 < len(alive) < 100
    assert alive.tolist() == np.flatnonzero(expected.any(axis=1)).tolist()
    np.testing.assert_allclose(activations, expected[alive], atol=1e-5)


@pytest.mark.parametrize("width", [3, 4, 7])  # rows of a place: too few for a block, one block, and one with rows left over
def test_nodes_of_a_place_are_computed_together_in_whatever_order_they_stand(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "CACHE_VALUES", 1)
    rng = np.random.default_rng(width)
    weights = []
    for matrix in radix_matrices([[2, 3], [6]], [width] * 4, rng):
        weight = csr_array(matrix.T[rng.permutation(6 * width)], dtype=np.float32)  # targets in any order, sources before systems as well
        weight.data = rng.choice(np.array([0.25, 0.5, -0.25], np.float32), weight.nnz)
        weights.append(weight)
    found = [StackLayer.of(weight, -0.3, 2.0) for weight in weights]
    assert all(sum(blocks.targets.size for blocks in layer.blocks) == 6 * width for layer in found)
    fours = sum(len(blocks.targets) for blocks in found[0].blocks if blocks.rows == 4)
    assert fours == 6 * (width // 4)  # each of the circle's six places by itself
    inputs = rng.integers(0, 2, (50, 6 * width)) * (rng.random((50, 1)) < 0.7)
    expected = inputs.astype(np.float64)
    for weight in weights:
        expected = np.clip(expected @ weight.toarray().T - 0.3, 0, 2)
    alive, activations = alive_after(found, csr_array(inputs))
    assert alive.tolist() == np.flatnonzero(expected.any(axis=1)).tolist()
    np.testing.assert_allclose(activations, expected[alive], atol=1e-5)


def test_the_worked_example_of_the_graph_challenge() -> None:
    weight = csr_array(np.array([[1 / 16, 0], [1 / 16, 1 / 16]]).T)  # theirs has sources along axis 0
    alive, activations = alive_after([StackLayer.of(weight, -0.3, 32.0)], csr_array(np.array([[8.0, 0], [0, 0], [0, 16]])))
    assert alive.tolist() == [0, 2]
    np.testing.assert_allclose(activations, [[0.2, 0], [0.7, 0.7]], atol=1e-6)


def test_where_every_sample_dies_nothing_is_left() -> None:
    alive, activations = alive_after([StackLayer.of(csr_array(np.eye(3)), -5.0)] * 3, csr_array(np.eye(3)))
    assert (alive.tolist(), activations.shape) == ([], (0, 3))


def test_a_positive_bias_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bias is 0.1, but must be at most 0, so that a sample without activations has none later"):
        StackLayer.of(csr_array(np.eye(3)), 0.1)

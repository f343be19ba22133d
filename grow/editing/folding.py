"""Units that lost their last path from the input are constants, and a bias can take a constant over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.editing.editable import Editable
from grow.editing.units import Merge
from grow.layers import SparseConv2d, SparseLinear
from grow.topology import Connections, columns_of, read_units
from grow.watch import layer_inputs


def folded(network: Editable, dead: Mapping[str, IntArray]) -> dict[str, list[Merge]]:
    """Those of the given units by space whose removal the readers' biases can make up for, as the constants that they are.

    One pass through the network tells all constants: folding those of one space leaves the others as they are.
    """
    readers = {layer.layer for space in dead for layer in network.topology.consumers(space)}
    inputs = _inputs(network, readers) if readers else {}
    return {space: _merges(network, space, units, inputs) for space, units in _foldable(network, dead, inputs).items()}


def _foldable(network: Editable, dead: Mapping[str, IntArray], inputs: Mapping[str, Tensor]) -> dict[str, IntArray]:
    """Of the given units by space, those that no layer reads, and those whose constant the readers' biases can take."""
    chosen = {}
    for space, units in dead.items():
        allowed = np.ones(len(units), bool)
        for layer in network.topology.consumers(space):
            reads = np.isin(units, read_units(network.topology, layer, space))
            constants = _constants(network, layer, space, units, inputs)
            allowed &= ~reads | np.array([_exact(network.layers[layer.layer], values) for values in constants])
        if allowed.any():
            chosen[space] = units[allowed][: network.topology.units[space] - 1]
    return {space: units for space, units in chosen.items() if len(units)}


def _constants(network: Editable, layer: Connections, space: str, units: IntArray, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Per unit: what the layer reads of it in evaluation mode, over samples, repeats and positions, flattened."""
    columns = columns_of(network.topology, layer, space, units)
    read = inputs[layer.layer] if len(layer.shape) > 2 else inputs[layer.layer].movedim(-1, 1)
    return [read[:, torch.from_numpy(group).to(read.device)].flatten() for group in columns]


def _inputs(network: Editable, paths: Collection[str]) -> dict[str, Tensor]:
    """What layers read, in evaluation mode, for the example and a sample of noise."""
    example, noise = network.example.to(network.device), torch.randn(network.example.shape, generator=torch.Generator().manual_seed(0))
    if example.is_floating_point():
        example = example.to(next(network.module.parameters()).dtype)
    else:  # tokens: which numbers exist is not known, but those of the example in another order do
        noise = example.reshape(-1).flip(0).reshape(example.shape)
    return layer_inputs(network.module, {path: network.layers[path] for path in paths}, torch.cat([example, noise.to(example)]))


def _merges(network: Editable, space: str, units: IntArray, inputs: Mapping[str, Tensor]) -> list[Merge]:
    """Units without a path, as the constants that they are."""
    constants: dict[int, dict[str, float]] = {int(unit): {} for unit in units}
    for layer in network.topology.consumers(space):
        reads = np.isin(units, read_units(network.topology, layer, space))
        if network.layers[layer.layer].bias is None or not reads.any():
            continue
        for unit, values in zip(units[reads], _constants(network, layer, space, units[reads], inputs), strict=True):
            constants[int(unit)][layer.layer] = float(values[0])
    return [Merge(unit, {}, found) for unit, found in constants.items()]


def _exact(layer: SparseLinear | SparseConv2d, values: Tensor) -> bool:
    """Whether a layer's bias can take over what these values (one unit's, everywhere) contribute."""
    if bool((values == 0).all()):
        return True
    padded = isinstance(layer, SparseConv2d) and any(layer.padding)
    return layer.bias is not None and not padded and bool((values == values[0]).all())

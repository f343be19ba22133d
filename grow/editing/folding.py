"""Units that lost their last path from the input are constants, and a bias can take a constant over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.editing.editable import Editable
from grow.editing.units import Merge
from grow.layers import SparseConv2d, SparseLinear
from grow.topology import columns_of, read_units
from grow.watch import layer_inputs


def folded(network: Editable, dead: Mapping[str, IntArray]) -> dict[str, list[Merge]]:
    """Those of the given units by space whose removal the readers' biases can make up for, as the constants that they are.

    One pass through the network tells all constants, if any is read: folding those of one space leaves the others as they are.
    """
    topology = network.topology
    read = {
        (space, layer.layer): np.isin(units, read_units(topology, layer, space))
        for space, units in dead.items()
        for layer in topology.consumers(space)
    }
    readers = {layer for (_, layer), which in read.items() if which.any()}
    inputs = _inputs(network, readers) if readers else {}
    found = {}
    for space, units in dead.items():
        constants = _constants(network, space, units, read, inputs)
        allowed = [all(_exact(network.layers[layer], values) for layer, values in read_of.items()) for read_of in constants]
        merges = [
            Merge(int(unit), {}, {layer: float(values[0]) for layer, values in read_of.items() if network.layers[layer].bias is not None})
            for unit, read_of, may in zip(units.tolist(), constants, allowed, strict=True)
            if may
        ][: topology.units[space] - 1]
        if merges:
            found[space] = merges
    return found


Read: TypeAlias = Mapping[tuple[str, str], NDArray[np.bool_]]
"""Which of some units of a space a layer reads, by space and layer."""


def _constants(network: Editable, space: str, units: IntArray, read: Read, inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Per unit: what each layer that reads it reads of it in evaluation mode, over samples, repeats and positions, flattened."""
    found: list[dict[str, Tensor]] = [{} for _ in units]
    for layer in network.topology.consumers(space):
        which = np.flatnonzero(read[space, layer.layer])
        if not len(which):
            continue
        values = inputs[layer.layer] if len(layer.shape) > 2 else inputs[layer.layer].movedim(-1, 1)
        for number, group in zip(which.tolist(), columns_of(network.topology, layer, space, units[which]), strict=True):
            found[number][layer.layer] = values[:, torch.from_numpy(group).to(values.device)].flatten()
    return found


def _inputs(network: Editable, paths: Collection[str]) -> dict[str, Tensor]:
    """What layers read, in evaluation mode, for the example and a sample of noise."""
    example, noise = network.example.to(network.device), torch.randn(network.example.shape, generator=torch.Generator().manual_seed(0))
    if example.is_floating_point():
        example = example.to(next(network.module.parameters()).dtype)
    else:  # tokens: which numbers exist is not known, but those of the example in another order do
        noise = example.reshape(-1).flip(0).reshape(example.shape)
    return layer_inputs(network.module, {path: network.layers[path] for path in paths}, torch.cat([example, noise.to(example)]))


def _exact(layer: SparseLinear | SparseConv2d, values: Tensor) -> bool:
    """Whether a layer's bias can take over what these values (one unit's, everywhere) contribute."""
    if bool((values == 0).all()):
        return True
    padded = isinstance(layer, SparseConv2d) and any(layer.padding)
    return layer.bias is not None and not padded and bool((values == values[0]).all())

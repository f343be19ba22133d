"""What apoptosis finds, and the measures that its methods share.

Legend: U units of a space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grow.editing.units import Merge
from grow.network import Network
from grow.topology import Connections, columns_of


@dataclass(frozen=True)
class Finding:
    """Merges of one space, and what they do.

    bound: no reader's pre-activations change by more than this share on the given batches. per_input: for `twins`, the largest change of a
    reader's pre-activations for an input x of the layer that computes the space, divided by |(x, 1)|, by reader; empty for `dependent`.
    """

    space: str
    merges: tuple[Merge, ...]
    bound: float
    per_input: Mapping[str, float]


def column_norms(network: Network, layer: Connections, space: str) -> Tensor:
    """Per unit of a space: a bound on how much a layer amplifies it, (U,). The columns' norm; in a convolution the taps' sum."""
    weight = network.layers[layer.layer].dense_weight().double()
    weight = weight.flatten(2).abs().sum(2) if weight.dim() > 2 else weight
    units = np.arange(network.topology.units[space])
    columns = torch.from_numpy(np.stack(columns_of(network.topology, layer, space, units))).to(weight.device)
    return weight.square().sum(0)[columns].sum(1).sqrt()


@torch.no_grad()
def drive(network: Network, name: str, x: Tensor) -> float:
    """Squared norm of a layer's output without its bias."""
    layer = network.layers[name]
    outputs = layer(x)
    if layer.bias is not None:
        outputs = outputs - (layer.bias[:, None, None] if len(layer.weight_shape) > 2 else layer.bias)
    return float(outputs.double().square().sum())

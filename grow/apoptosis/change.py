"""What merges would change, seen before they are carried out: every reader is shown the stand-ins in the place of what goes.

Legend: U units of a space, S columns a unit has in a reader, J units that go, I, O source and target entries of a reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from grow.editing.units import Merge, factors
from grow.network import Network
from grow.topology import Connections, columns_of, rows_of
from grow.watch import evaluating


@torch.no_grad()
def changes(network: Network, space: str, merges: Sequence[Merge], batches: Sequence[Tensor]) -> dict[str, float]:
    """Norm of the change of every reader's pre-activations over the batches, what follows from the other readers' changes included."""
    readers = network.topology.consumers(space)
    gone = np.array([merge.unit for merge in merges], np.int64)
    squares = dict.fromkeys((layer.layer for layer in readers), 0.0)
    with evaluating(network):
        for inputs in batches:
            x = inputs.to(network.device)
            before, after = _written(network, x, readers), _written(network, x, readers, space, merges)
            for layer in readers:
                difference = after[layer.layer] - before[layer.layer]
                lost = rows_of(network.topology, layer, space, gone) if len(gone) else []
                stays = np.setdiff1d(np.arange(layer.shape[0]), np.concatenate([np.zeros(0, np.int64), *lost]))
                lines = difference.movedim(1, -1) if len(layer.shape) > 2 else difference
                squares[layer.layer] += float(lines[..., torch.from_numpy(stays).to(lines.device)].double().square().sum())
    return {name: total**0.5 for name, total in squares.items()}


def _written(
    network: Network, x: Tensor, readers: Sequence[Connections], space: str = "", merges: Sequence[Merge] = ()
) -> dict[str, Tensor]:
    """Pre-activations of the readers, as the network stands or with stand-ins for the units that would be merged."""
    seen: dict[str, Tensor] = {}

    def show(layer: Connections, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_with_stand_ins(network, layer, space, merges, arguments[0]),)

    def note(layer: Connections, output: Tensor) -> None:
        seen[layer.layer] = output.clone()  # what follows may change it in place

    with ExitStack() as hooks:
        for layer in readers:
            module: nn.Module = network.layers[layer.layer]
            if merges:
                hooks.enter_context(module.register_forward_pre_hook(lambda _, arguments, layer=layer: show(layer, arguments)))
            hooks.enter_context(module.register_forward_hook(lambda _, __, output, layer=layer: note(layer, output)))
        network(x)
    return seen


def _with_stand_ins(network: Network, layer: Connections, space: str, merges: Sequence[Merge], x: Tensor) -> Tensor:
    """What a reader reads, (B, ..., I) or (B, I, H, W), units that go replaced by the sums that stand in for them."""
    units, others, scales = factors(merges)
    gone = np.array([merge.unit for merge in merges], np.int64)
    place = np.full(network.topology.units[space], -1)
    place[gone] = np.arange(len(gone))
    mixing = np.zeros((len(gone), len(place)))
    mixing[place[units], others] = scales
    columns = np.stack(columns_of(network.topology, layer, space, np.arange(len(place))))  # (U, S)
    all_columns, lost = (torch.from_numpy(found).to(x.device) for found in (columns, columns[gone]))
    constants = torch.tensor([merge.constants.get(layer.layer, 0.0) for merge in merges]).to(x)
    lines = (x.movedim(1, -1) if len(layer.shape) > 2 else x).clone()  # (..., I)
    lines[..., lost] = torch.einsum("ju,...us->...js", torch.from_numpy(mixing).to(x), lines[..., all_columns]) + constants[:, None]
    return lines.movedim(-1, 1) if len(layer.shape) > 2 else lines

"""Gathers evidence over batches: one pass for what all connections are judged by, others for what only existing ones have.

Legend: B samples, C classes, O / I target and source entries of a weight (O, I, *kernel), E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from grow.axes import IntArray
from grow.evidence import parameters
from grow.evidence.base import Effort, Evidence, Layer, Need
from grow.evidence.products import Products
from grow.evidence.watch import Call, output_gradients, undisturbed, watched
from grow.layers import SparseLinear
from grow.movement import movement_of
from grow.network import Network
from grow.task import Batch

Loss = Callable[[Tensor, Tensor], Tensor]

DATA_FREE: frozenset[Need] = frozenset({"synflow", "movement", "parts"})
_OF_OUTPUTS: frozenset[Need] = frozenset({"gradient", "momentum", "curvature", "fisher", "mc_fisher"})


def gather(
    network: Network,
    batches: Sequence[Batch],
    loss: Loss,
    needs: frozenset[Need],
    generator: torch.Generator,
    effort: Effort = Effort(),  # noqa: B008, frozen
    only: Mapping[str, IntArray | None] | None = None,
) -> Evidence:
    """Evidence about every sparse layer, as the mean over all samples of ``batches``; ``momentum`` and ``taylor`` know the batches apart.

    ``loss`` is the mean loss of a batch, whose samples must not look at each other. ``only`` names the layers that are looked at,
    and of each the rows (sorted) or None for all; other layers then have no rows. curvature and mc_fisher take the outputs for
    logits (B, C) of a classification with cross-entropy; curvature costs C backward passes a batch. The network is watched in
    evaluation mode (no dropout, batch norm with its running statistics) and left as it was: training flags, buffers, ``.grad`` of
    its parameters and random state.
    """
    if needs - DATA_FREE and not batches:
        raise ValueError("batches is empty, but must hold at least one batch; criteria that look at gradients need data")
    if "parts" in needs and network.parts is None:
        raise ValueError("parts of the network is None, but connectivity is measured between parts; assign the units to parts first")
    layers = network.layers
    none = torch.zeros(0, dtype=torch.int64).numpy()
    rows = {} if only is None else {name: only.get(name, none) for name in layers}
    chosen: dict[str, Layer] = {name: layer for name, layer in layers.items() if only is None or name in only}
    sums = {name: {need: Products(layer, rows.get(name)) for need in sorted(needs & _OF_OUTPUTS)} for name, layer in chosen.items()}
    stored: dict[str, dict[Need, Tensor]] = {name: {} for name in chosen}
    with undisturbed(network) if needs else nullcontext():
        if needs & _OF_OUTPUTS:
            samples = sum(len(targets) for _, targets in batches)
            gathering = _Gathering(network, chosen, rows, sums, samples, generator, effort)
            for batch in batches:
                gathering.add(batch, loss)
        if "taylor" in needs:
            _put(stored, "taylor", parameters.taylor(network, chosen, batches, loss))
        if "hutchinson" in needs:
            _put(stored, "hutchinson", parameters.hutchinson(network, chosen, batches, loss, effort.probes, generator))
        if "hessian_gradient" in needs:
            _put(stored, "hessian_gradient", parameters.hessian_gradient(network, chosen, batches, loss))
        if "synflow" in needs:
            _put(stored, "synflow", parameters.synflow(network, chosen))
        if "movement" in needs:
            moved = movement_of(network).tensors
            _put(stored, "movement", {name: moved[f"{name}.weight"] for name in chosen})
    draws = torch.randint(2**62, (len(layers),), generator=generator, device=generator.device).tolist()
    seeds = dict(zip(layers, draws, strict=True))

    def more(others: frozenset[Need], only: Mapping[str, IntArray | None]) -> Evidence:
        return gather(network, batches, loss, others, generator, effort, only)

    return Evidence(network.topology, layers, network.parts, needs, sums, stored, seeds, more, rows)


def _put(stored: Mapping[str, dict[Need, Tensor]], need: Need, found: Mapping[str, Tensor]) -> None:
    for name, values in stored.items():
        values[need] = found[name]


@dataclass(frozen=True)
class _Gathering:
    """Everything that is made of what layers read and of the gradients of what they give out. samples: of all batches."""

    network: Network
    layers: Mapping[str, Layer]
    rows: Mapping[str, IntArray | None]
    sums: Mapping[str, Mapping[Need, Products]]
    samples: int
    generator: torch.Generator
    effort: Effort

    def add(self, batch: Batch, loss: Loss) -> None:
        """One batch to all sums."""
        inputs, targets = batch
        outputs, calls = watched(self.network, self.layers, inputs)
        for found in self.sums.values():
            if "momentum" in found:
                found["momentum"].fade(self.effort.decay)
        needs = frozenset[Need]().union(*self.sums.values())
        if needs & {"gradient", "momentum", "fisher"}:
            alone = not needs & {"mc_fisher", "curvature"}
            for call, g in output_gradients(calls, loss(outputs, targets), None, last=alone):
                self._add_gradient(call, self._chosen(call, g), len(targets))
        for need, directions, scale in self._squared(needs, outputs.detach()):
            self._add_squares(need, calls, outputs, directions, scale)

    def _add_gradient(self, call: Call, g: Tensor, batch: int) -> None:
        """What the gradient of a batch's mean loss gives."""
        own = self.sums[call.name]
        if "gradient" in own:
            own["gradient"].add(call.input, g, "product", batch / self.samples)
        if "momentum" in own:
            own["momentum"].add(call.input, g, "product")
        if "fisher" in own:  # g is of the mean loss: a sample's own gradient is B times as large
            own["fisher"].add(call.input, g * batch, "squares", 1 / self.samples)

    def _squared(self, needs: frozenset[Need], outputs: Tensor) -> Iterator[tuple[Need, Iterator[Tensor], float]]:
        """What sums squares of gradients along directions of the outputs: those, and the share that each counts."""
        if "mc_fisher" in needs:
            drawn = (_drawn_direction(outputs, self.generator) for _ in range(self.effort.probes))
            yield "mc_fisher", drawn, 1 / (self.samples * self.effort.probes)
        if "curvature" in needs:
            yield "curvature", cross_entropy_directions(outputs), 1 / self.samples

    def _add_squares(self, need: Need, calls: Sequence[Call], outputs: Tensor, directions: Iterator[Tensor], scale: float) -> None:
        # Where squares of products are products of squares, the directions are summed before they meet x: one product for all.
        together: dict[Call, Tensor] = {}
        for direction in directions:
            for call, g in output_gradients(calls, outputs, direction):
                if isinstance(self.layers[call.name], SparseLinear) and call.input.ndim == 2:
                    together[call] = together.get(call, torch.zeros_like(g)) + g.square()
                else:
                    self.sums[call.name][need].add(call.input, self._chosen(call, g), "squares", scale)
        for call, squares in together.items():
            self.sums[call.name][need].add(call.input, self._chosen(call, squares), "separable", scale)

    def _chosen(self, call: Call, g: Tensor) -> Tensor:
        """The rows that are looked at."""
        held = self.rows.get(call.name)
        axis = -1 if isinstance(self.layers[call.name], SparseLinear) else 1
        return g if held is None else g.index_select(axis, torch.from_numpy(held).to(g.device))


def cross_entropy_directions(logits: Tensor) -> Iterator[Tensor]:
    """Columns of S = diag(sqrt p) - p sqrt(p)^T, each (B, C); S S^T is the Hessian of the cross-entropy in the logits."""
    _check_logits(logits)
    p = logits.softmax(1)
    for c in range(p.shape[1]):
        column = -p * p[:, c, None].sqrt()
        column[:, c] += p[:, c].sqrt()
        yield column


def _drawn_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient of each sample's cross-entropy in its logits, (B, C), for a label drawn from them."""
    _check_logits(logits)
    p = logits.softmax(1)
    labels = torch.multinomial(p.to(generator.device), 1, generator=generator).to(p.device)
    return p.scatter_add(1, labels, p.new_full((len(p), 1), -1.0))


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(f"outputs has shape {tuple(logits.shape)}, but must be logits (B, C); use a criterion without curvature")

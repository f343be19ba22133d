"""The gradient of a training step as evidence: what every layer read in it, and the gradient of what it gave out.

An update's own pass through the network costs as much as a training step. Where growth waits for the step after the pruning, that step is
the pass: with the weights that it begins with, on its own batch, with dropout and the statistics of that batch. Held are the factors of the
gradients, as large as the activations, and no products.

Legend: B samples, O / I target and source entries of a weight (O, I, *kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grow.axes import IntArray
from grow.evidence.base import Evidence, Layer, Need
from grow.evidence.products import Products
from grow.evidence.watch import output_gradients, watched
from grow.layers import SparseLayer
from grow.network import Network
from grow.task import Batch
from grow.topology import Topology

Factors = tuple[Tensor, Tensor]
"""What a layer read (B, ..., I) or (B, I, H, W), and the gradient of the mean loss in what it gave out, (B, ..., O) or (B, O, H', W')."""
KINDS = ("read", "gradient")


class StepGradients:
    """The factors of every call of some layers in one step. A record of its network, whose units must stay as they are.

    valid: False where an edit has moved units since, or where the step itself changed something after a layer had read it. Evidence must
    then come from another pass.
    """

    def __init__(self, factors: Mapping[str, list[Factors]] | None = None) -> None:
        self.valid = True
        self._factors: dict[str, list[Factors]] = dict(factors or {})

    @contextmanager
    def watching(self, layers: Mapping[str, Layer]) -> Iterator[None]:
        """Take what these layers read in a forward pass and what comes back in a backward pass, both within the context."""
        self._factors = {name: [] for name in layers}
        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.enter_context(_removed(layer.register_forward_hook(partial(self._called, name))))
            yield

    def _called(self, name: str, layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        # As in `grow.evidence.watch`: of a view, a change in place would not be seen.
        output = output.clone() if output._is_view() else output
        # What the step reads of its batch may be refilled before the growth: a task may have one buffer for all batches.
        given = args[0].detach()
        read = given if args[0].requires_grad else given.clone()
        if output.requires_grad:
            output.register_hook(partial(self._came_back, name, read, given, given._version))  # type: ignore[no-untyped-call]
        return output

    def _came_back(self, name: str, read: Tensor, given: Tensor, version: int, g: Tensor) -> None:
        self.valid = self.valid and given._version == version
        self._factors[name].append((read, g.detach()))

    @staticmethod
    def rehearsed(network: Network, layers: Mapping[str, Layer], batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> StepGradients:
        """What a step on a batch would give, for steps that are made elsewhere. The network and torch's random state stay as they are."""
        modules = [module for module in network.modules() if not isinstance(module, SparseLayer)]
        buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers(recurse=False)]
        training, devices = network.training, [network.device] if network.device.type == "cuda" else []
        network.train()
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=devices):
                outputs, calls = watched(network, layers, batch[0])
                found = list(output_gradients(calls, loss(outputs, batch[1]), None, last=True))
        finally:
            network.train(training)
            for buffer, before in buffers:
                buffer.copy_(before)
        return StepGradients({name: [(call.input, g) for call, g in found if call.name == name] for name in layers})

    def evidence(self, network: Network, names: Collection[str]) -> Evidence | None:
        """The gradient of every possible weight of the named layers and nothing more; None where it is not valid for all of them."""
        if not self.valid or self._factors.keys() != set(names):
            return None
        sums: dict[str, dict[Need, Products]] = {}
        for name, calls in self._factors.items():
            sums[name] = {"gradient": Products(network.layers[name], None)}
            for x, g in calls:
                sums[name]["gradient"].add(x, g, "product")
        none = np.zeros(0, np.int64)
        rows = {} if len(sums) == len(network.layers) else {name: None if name in sums else none for name in network.layers}
        seeds = dict.fromkeys(network.layers, 0)  # nothing is drawn
        return Evidence(network.topology, network.layers, network.parts, frozenset({"gradient"}), sums, {}, seeds, _nothing_more, rows)

    # ------------------------------------------------------------------ through edits and checkpoints

    def edited(self, before: Topology, after: Topology, moves: Mapping[str, IntArray] | None) -> None:
        """Edits of connections leave what was read and given out; others make it void."""
        if moves is None or moves:
            self.valid, self._factors = False, {}

    def tensors(self) -> dict[str, Tensor]:
        """All that is held, for a checkpoint, by layer, call and kind; nothing where it is not valid."""
        return {
            f"{name}/{number}/{kind}": tensor
            for name, calls in self._factors.items()
            for number, call in enumerate(calls)
            for kind, tensor in zip(KINDS, call, strict=True)
        }

    @property
    def layers(self) -> list[str]:
        """The layers that were watched."""
        return list(self._factors)

    @staticmethod
    def loaded(layers: Sequence[str], tensors: Mapping[str, Tensor], device: torch.device) -> StepGradients:
        """What a checkpoint holds."""
        factors: dict[str, list[Factors]] = {name: [] for name in layers}
        for name, calls in factors.items():
            while f"{name}/{len(calls)}/{KINDS[0]}" in tensors:
                read, gradient = (tensors[f"{name}/{len(calls)}/{kind}"].to(device, copy=True) for kind in KINDS)
                calls.append((read, gradient))
        return StepGradients(factors)


def _nothing_more(needs: frozenset[Need], only: Mapping[str, IntArray | None]) -> Evidence:
    raise ValueError(f"the criterion asks for {', '.join(sorted(needs))}, but must need the gradient alone; the step told nothing else")


@contextmanager
def _removed(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()

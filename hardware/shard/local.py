"""One rank's module, and how its tensors and its batch lie in the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, fx

from grow.layers import SparseLayer
from hardware.execute.exchange import Peers
from hardware.execute.gradients import GradientSum
from hardware.execute.moves import Batch
from hardware.layout import Strategy
from hardware.shard.held import Held

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of a batch -> the mean over its samples."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One rank's module, and how its tensors and its batch lie in the whole.

    The module is given the whole batch on every rank. cuts: whether its logits are those of the rank's own samples alone, else every
    rank has all of them. batch: what is computed now; its ``step`` counts the losses taken and decides what dropout draws.
    autocast: the dtype in which the module computes where torch sees fit; losses are of its outputs in float32.
    """

    module: fx.GraphModule
    layouts: Strategy
    peers: Peers
    held: Mapping[str, Held]
    cuts: bool
    batch: Batch
    _sums: list[GradientSum] = field(default_factory=list)
    autocast: torch.dtype | None = None

    def own_samples(self, samples: int) -> slice:
        """Samples of a batch whose logits this rank has."""
        return slice(*self.peers.bounds(samples)[self.peers.rank : self.peers.rank + 2]) if self.cuts else slice(0, samples)

    def loss(self, inputs: Tensor, targets: Tensor, loss: Loss, step: int | None = None) -> Tensor:
        """This rank's share of the loss of a whole batch: see `total`.

        ``step`` is the number of the training step, for dropout; without it, steps are counted as they come.
        """
        self.batch.step = self.batch.step + 1 if step is None else step
        mine = self.own_samples(len(targets))
        outputs = self._outputs(inputs)
        if not self.cuts:
            return loss(outputs, targets)
        count = mine.stop - mine.start
        if count == 0:
            return outputs.sum()  # zero, with a gradient of zero: this rank takes part in every sum
        share: Tensor = loss(outputs, targets[mine]) * (count / len(targets))
        return share

    def total(self, share: Tensor) -> Tensor:
        """The loss of the whole batch, on every rank, from the ranks' shares."""
        if not self.cuts or self.peers.count == 1:
            return share.detach()
        whole = share.detach().clone()
        torch.distributed.all_reduce(whole, group=self.peers.group)
        return whole

    def step(self, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, loss: Loss, step: int | None = None) -> Tensor:
        """One training step on a whole batch, of which this rank takes what is its own. Returns its share of the loss."""
        optimizer.zero_grad(set_to_none=True)
        share = self.loss(inputs, targets, loss, step)
        share.backward()  # type: ignore[no-untyped-call]
        self.sum_gradients()
        optimizer.step()
        return share.detach()

    @torch.no_grad()
    def infer(self, inputs: Tensor) -> Tensor:
        """Outputs of a whole batch in evaluation mode, of this rank's `own_samples`; only the forward half of every move is made."""
        self.module.eval()
        return self._outputs(inputs)

    def compile(self) -> None:
        """Compile the module in place. It must not be edited afterwards."""
        for layer in self.module.modules():
            if isinstance(layer, SparseLayer):
                layer.prepare()
        self.module.compile()

    def _outputs(self, inputs: Tensor) -> Tensor:
        if self.autocast is None:
            outputs: Tensor = self.module(inputs)
            return outputs
        with torch.autocast(inputs.device.type, self.autocast):
            found: Tensor = self.module(inputs)
        return found.float() if found.dtype == self.autocast else found

    def sum_gradients(self) -> None:
        """Finish what the backward pass began: gradients of what was computed from own samples become those of the whole batch."""
        for gradients in self._sums:
            gradients.finish()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, on every rank, of local ones: parameters, gradients, buffers or optimizer state, by local parameter name.

        They come back under the names that they have in the network, weights in weight coordinates (O, I, *kernel) and zero where no
        connection exists. All ranks must ask for the same.
        """
        whole = {}
        for name, tensor in tensors.items():
            held = self.held[name]
            total = tensor.detach().new_zeros(held.shape)
            held.put(tensor, total)
            if self.peers.count > 1:
                torch.distributed.all_reduce(total, group=self.peers.group)  # one owner each: nothing is rounded
            whole[held.name] = total
        return whole

    def gather_state(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by the network's parameter name and by entry, whole, on every rank; scalars as they are."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.module.named_parameters():
            state = optimizer.state.get(parameter, {})
            whole = self.held[name].name
            found[whole] = {
                key: self.gather({name: value})[whole] if value.shape == parameter.shape else value.clone()
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        return found

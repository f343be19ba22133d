"""Sums of gradients over the ranks, where each of them has seen its own samples only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from hardware.execute.exchange import Peers
from hardware.transitions import DIRECT_BYTES


class GradientSum:
    """Sums gradients over the ranks: large ones as they are, as soon as they are there, small ones together at the end.

    The backward pass goes on meanwhile, unless it has one core, which it would share with the thread that sends.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], peers: Peers) -> None:
        self.peers = peers
        self._small = [parameter for parameter in parameters if parameter.numel() * parameter.element_size() < DIRECT_BYTES]
        self._works: list[distributed.Work] = []
        for parameter in parameters:
            if parameter.requires_grad and parameter.numel() * parameter.element_size() >= DIRECT_BYTES:
                parameter.register_post_accumulate_grad_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = gradient = gradient.contiguous()
        if gradient.device.type == "cpu" and torch.get_num_threads() == 1:
            self.peers.all_reduce(gradient)
            return
        self.peers.sum_bytes += gradient.numel() * gradient.element_size()
        work = distributed.all_reduce(gradient, group=self.peers.group, async_op=True)
        assert work is not None
        self._works.append(work)

    def finish(self) -> None:
        """Wait for the large ones, sum the small ones."""
        small = [parameter.grad for parameter in self._small if parameter.grad is not None]
        if small:
            total = self.peers.sum(torch.cat([gradient.reshape(-1) for gradient in small]))
            for gradient, summed in zip(small, torch.split(total, [gradient.numel() for gradient in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        for work in self._works:
            work.wait()
        self._works.clear()

"""What training has done to every weight: the scores of movement pruning."""

from __future__ import annotations

import torch

from grow.memory import Memory
from grow.network import Network


class Movement(Memory):
    """-sum over the steps of learning rate * g w, for every existing connection.

    Sanh, Wolf, Rush 2020, arXiv 2005.07683, without its straight-through gradient: what is pruned does not come back by its score.
    """

    @torch.no_grad()
    def step(self, network: Network, learning_rate: float) -> None:
        """Add one training step, between backward and the optimizer's step. Weights without gradient stay as they are."""
        for name, layer in network.layers.items():
            if layer.weight.grad is not None:
                self.tensors[f"{name}.weight"].addcmul_(layer.weight.grad, layer.weight, value=-learning_rate)


def movement_of(network: Network) -> Movement:
    """The movement that is attached to a network; ValueError if there is none."""
    for follower in network.followers:
        if isinstance(follower, Movement):
            return follower
    raise ValueError("the criterion needs movement, but the network has no Movement attached; attach one and step it while training")

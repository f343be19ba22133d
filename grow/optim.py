"""Optimizers whose state follows every edit exactly.

torch's Adam counts its steps per tensor. A connection grown at step t would then be corrected as if it were t steps old and
move at several times the rate of a fresh one. Here the step count is kept per connection once an edit has added any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from grow.kernels.aged import Rule, update

Name = Literal["sgd", "adam", "adamw", "rmsprop"]

MOMENTS: dict[Name, int] = {"sgd": 1, "adam": 3, "adamw": 3, "rmsprop": 1}
"""Tensors of a parameter's size that each keeps: Adam, once an edit has added any, also the birth of every connection."""

BIRTH = "birth"
"""State entry of an Adam parameter: the step at which each element came into being, shaped like the parameter."""


class PerConnectionStep(torch.optim.Optimizer):
    """Adam's update with a bias correction by each element's own age; torch's own code where nothing was ever added."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. Closures are refused: growth and pruning happen between steps."""
        if closure is not None:
            raise ValueError("closure is given, but must be None; evaluate the loss before the step")
        aged = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and BIRTH in self.state.get(parameter, {}):
                    self._aged_step(group, parameter)
                    aged.append((parameter, parameter.grad))
                    parameter.grad = None  # torch's step passes over it
        super().step()
        for parameter, gradient in aged:
            parameter.grad = gradient

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which gives all state the parameter's dtype; but births are steps, and stay float32."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                birth = state_dict["state"].get(number, {}).get(BIRTH)
                if birth is not None:
                    self.state[parameter][BIRTH] = birth.to(parameter.device, torch.float32, copy=True)

    @torch.no_grad()
    def _aged_step(self, group: dict[str, Any], parameter: Tensor) -> None:
        """One update of a parameter whose elements have births."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            shape = tuple(parameter.shape)
            raise ValueError(
                f"gradient of a parameter of shape {shape} is sparse, but must be dense; make the embedding without sparse=True"
            )
        state["step"] += 1
        beta1, beta2 = group["betas"]
        rate, epsilon, decay = float(group["lr"]), float(group["eps"]), float(group["weight_decay"])
        rule = Rule(rate, (float(beta1), float(beta2)), epsilon, decay, group["decoupled_weight_decay"])
        update(rule, state["step"], parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state[BIRTH])


class Adam(PerConnectionStep, torch.optim.Adam):
    """torch's Adam with a step count per connection."""


class AdamW(PerConnectionStep, torch.optim.AdamW):
    """torch's AdamW with a step count per connection."""


def make(
    name: Name, parameters: Iterable[Tensor], learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of that name. ``momentum`` is SGD's; Adam keeps torch's betas, RMSprop torch's smoothing constant 0.99."""
    match name:
        case "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
        case "adam":
            return Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
        case "adamw":
            return AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer is {name!r}, but must be one of {', '.join(get_args(Name))}")


def check_editable(optimizer: torch.optim.Optimizer) -> None:
    """ValueError for optimizers that cannot follow an edit exactly.

    RMSprop can as it is, centered and with momentum too: it corrects no bias, so that zeros are a fresh connection's state.
    """
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) and not isinstance(optimizer, PerConnectionStep):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer is torch.optim.{kind}, but its step count is shared by all connections; use grow.optim.{kind}")
    if not isinstance(optimizer, (torch.optim.SGD, torch.optim.RMSprop, PerConnectionStep)):
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}, but must be torch.optim.SGD, "
            "torch.optim.RMSprop, grow.optim.Adam or grow.optim.AdamW"
        )
    for group in optimizer.param_groups:
        if group.get("dampening", 0):
            raise ValueError(f"dampening is {group['dampening']}, but must be 0; with it SGD treats a connection's first step differently")
        if group.get("maximize", False):
            raise ValueError("maximize is True, but must be False; minimise the negative")
        if group.get("amsgrad", False):
            raise ValueError("amsgrad is True, but must be False; its running maximum has no fresh value for a new connection")

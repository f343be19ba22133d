"""The training loop: train, and between two steps whatever the controller decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from grow import controller
from grow.controller import Policy, Report, State, Stop, Train
from grow.edits import birth_connections, birth_degrees, carry_out, choose_kernels
from grow.evidence.step import StepGradients
from grow.kernels import KERNELS
from grow.movement import Movement
from grow.network import Network
from grow.session import Methods, Session
from grow.task import Batch
from grow.topology import unconnected

__all__ = [
    "DivergedError", "Methods", "Progress", "Session", "accuracy", "birth_degrees", "carry_out", "choose_kernels", "evaluate",
    "next_training", "report",
    "train", "train_step",
]  # fmt: skip


CHANGED = 0.2
"""By what share a layer must have changed for its kernel to be chosen anew."""


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Progress:
    """One step made."""

    step: int
    loss: float


def train(session: Session) -> Iterator[Progress]:
    """Train, growing and pruning as the controller decides. Yields after every step; between two steps a checkpoint may be taken.

    Raises DivergedError when the loss is no longer finite.
    """
    while isinstance(decision := next_training(session), Train):
        while session.step < decision.until:
            yield Progress(session.step + 1, train_step(session))


def next_training(session: Session) -> Train | Stop:
    """Decide and edit until it is time to train, or to stop.

    After an update, kernels are chosen anew for layers that have changed by more than `CHANGED`, and units are divided anew, if the
    methods say how.
    """
    if isinstance(session.learning_rate, ReduceLROnPlateau):
        raise ValueError(
            "learning_rate is a ReduceLROnPlateau, but must be a scheduler that goes by the step alone; pass a function of the step, "
            "or step it yourself between two steps"
        )
    before = session.network.topology
    decision = _edited(session)
    session.note(None)
    if session.network.topology is not before and not session.watches:  # else the update ends after the next step
        if session.methods.timings is not None:
            choose_kernels(session.network, session.methods.timings, session.task.batch_size, CHANGED)
        if session.methods.divide is not None:
            session.methods.divide(session.network)
    if session.autocast is not None and isinstance(decision, Train):
        _warn_of_uncast(session, session.autocast)
    return decision


def _warn_of_uncast(session: Session, dtype: torch.dtype) -> None:
    """Say so, once for each kernel, where layers are computed in their weights' dtype under autocast."""
    kernels = {layer.kernel for layer in session.network.layers.values() if dtype not in KERNELS[layer.kernel].dtypes} - session.uncast
    if not kernels:
        return
    session.uncast |= kernels
    known = ", ".join(kernel.name for kernel in KERNELS.values() if dtype in kernel.dtypes)
    warnings.warn(
        f"autocast is {dtype}, but kernel {' and '.join(sorted(kernels))} does not know it and computes in the dtype of the weights; leave "
        f"autocast out, or choose among the kernels that know it ({known}) by timings of these alone",
        stacklevel=3,
    )


def _edited(session: Session) -> Train | Stop:
    """Decide and edit until there is nothing more to edit, in evaluation mode, so that not every probe has to change it."""
    network, training = session.network, session.network.training
    try:
        while True:
            told = report(session)
            decision, session.state = controller.decide(session.policy, told, session.state)
            if isinstance(decision, (Train, Stop)):
                return decision
            if network.training:
                network.eval()
            carry_out(session, decision, told.accuracy)
    finally:
        if network.training != training:
            network.train(training)


def train_step(session: Session) -> float:
    """Forward, backward, one optimizer step; the batch's loss."""
    session.network.train()
    inputs, targets = session.task.train_batch(session.step)
    inputs, targets = inputs.to(session.network.device), targets.to(session.network.device)
    rate = session.learning_rate
    if rate is not None and not isinstance(rate, LRScheduler):
        for group in session.optimizer.param_groups:
            group["lr"] = rate(session.step)
    session.optimizer.zero_grad()
    with _watching(session):
        loss = session.task.loss(session.outputs(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
    for follower in session.followers.values():
        if isinstance(follower, Movement):
            follower.step(session.network, float(session.optimizer.param_groups[0]["lr"]))
    session.optimizer.step()
    if isinstance(rate, LRScheduler):
        rate.step()
    if session.average is not None:
        session.average.update()
    session.step += 1
    value = loss.item()
    if not isfinite(value):
        raise DivergedError(f"loss is {value} at step {session.step}, but must be finite; lower learning_rate")
    return value


def _watching(session: Session) -> AbstractContextManager[None]:
    """Within it, the gradients that growth waits for are noted."""
    if not session.watches:
        return nullcontext()
    stepped = StepGradients()
    session.note(stepped)
    return stepped.watching(session.watched)


@torch.no_grad()
def evaluate(
    network: Network,
    batches: Iterator[Batch],
    correct: Callable[[Tensor, Tensor], Tensor],
    outputs: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Accuracy over all batches, as a share of the samples, in evaluation mode. outputs: those of the network; None: it is called."""
    training = network.training
    network.eval()
    right, count = 0.0, 0
    try:
        for inputs, targets in batches:
            found = correct((outputs or network)(inputs.to(network.device)), targets.to(network.device))
            if found.shape != targets.shape[:1]:
                given, due = tuple(found.shape), tuple(targets.shape[:1])
                raise ValueError(f"correct gave the shape {given}, but must give one value per sample, {due}; average over the rest")
            right += float(found.sum())
            count += len(targets)
    finally:
        network.train(training)
    if not count:
        raise ValueError("the data to evaluate on has 0 samples, but must have at least one; pass a loader with data")
    return right / count


def accuracy(session: Session, batches: Iterator[Batch] | None = None) -> float:
    """Accuracy on all validation data, or on some, with the averaged weights where there are any."""
    with nullcontext() if session.average is None else session.average.applied():
        return evaluate(session.network, batches or session.task.validation(), session.task.correct, session.outputs)


def report(session: Session) -> Report:
    """What the controller is told: no more than its state asks for."""
    topology, state, policy = session.network.topology, session.state, session.policy
    if not isinstance(policy, Policy) or not isinstance(state, State):
        judged = accuracy(session) if controller.needs_accuracy(state, session.step) else None
        return Report(session.step, topology.connections, topology.units, _some_unconnected(session), accuracy=judged)
    if state.phase == "train" and session.step < state.next_update:
        return Report(session.step, topology.connections, topology.units, unconnected=False)
    costs = {space: birth_connections(topology, space) for space in policy.units}
    dead = state.phase in ("train", "prune", "shed", "merge", "tidy") and _some_unconnected(session)
    return Report(session.step, topology.connections, topology.units, dead, costs, by_step=session.grows_by_step)


def _some_unconnected(session: Session) -> bool:
    """Whether units lost their last path, in spaces that are not kept."""
    return bool(unconnected(session.network.topology).keys() - session.kept_spaces)

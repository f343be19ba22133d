"""What a training would stumble over at its first update, found before its first step: every method looks at a few samples.

Nothing is edited, and what the methods draw or remember is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from grow.births import Given
from grow.controller import Policy, Tolerance
from grow.editing.insertion import check_insertion, place_of
from grow.edits import mergeable
from grow.evidence import gather
from grow.evidence.gather import DATA_FREE
from grow.unit_evidence import gather_units

if TYPE_CHECKING:
    from grow.session import Session

SAMPLES = 2
"""Samples that the methods look at."""


def rehearse(session: Session) -> None:
    """ValueError where a method of the session is not defined for its network."""
    network, methods, policy, loss = session.network, session.methods, session.policy, session.task.loss
    inputs, targets = session.task.train_batch(0)
    batches = [(inputs[:SAMPLES].to(network.device), targets[:SAMPLES].to(network.device))]
    generator = torch.Generator().manual_seed(0)
    if isinstance(policy, Policy) and not policy.last_update and policy.first_update is None:
        return  # no update will come
    looked_at = {name: None for name in network.layers if name not in session.kept}
    growing = isinstance(policy, Policy) and policy.regrow
    for criterion in (methods.pruning, methods.growth) if growing else (methods.pruning,):
        needs = criterion.needs | criterion.later
        gather(network, batches if needs - DATA_FREE else [], loss, needs, generator, only=looked_at)
    gather_units(network, batches, loss, methods.unit_pruning.needs, generator, _shrinking(session))
    for space in _spaces(session, 1):
        methods.birth.check(network, space, Given(batches, loss, generator))
    if isinstance(policy, Policy):
        if policy.merge:
            mergeable(session)
        for _, insertion in policy.insertions[:1]:  # later ones may stand on earlier ones
            check_insertion(insertion, network.topology, network.module)
            place_of(network.module, network.topology, insertion)


def _shrinking(session: Session) -> Iterable[str]:
    return session.policy.spaces if isinstance(session.policy, Tolerance) else _spaces(session, -1)


def _spaces(session: Session, sign: int) -> list[str]:
    """Spaces that are to have more (1) or fewer (-1) units at the end."""
    if isinstance(session.policy, Tolerance):
        return []
    units, end = session.network.topology.units, session.policy.steps
    return [space for space, wanted in session.policy.units.items() if sign * (round(wanted(end)) - units[space]) > 0]

"""Is it the structure or the weights? A found structure trained anew, several times, from other weights than those it was found with.

- *new weights*: the found structure from newly drawn initial weights, scaled to the fan-in that is left;
- *rewound*: the found structure from the weights that the found network itself had early in its training, and on from that step
  (Frankle et al. 2020, arXiv 1912.05671);
- *random structure*: as many connections in every layer as found, anywhere, between all units of the start network, and new weights.

All are trained for as many steps as the found network was, at the same learning rates, without any edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from grow import controller, schedules
from grow.axes import IntArray
from grow.controller import Policy
from grow.fitting import Early, Fit, attached, hasten, rate
from grow.history import History
from grow.loaders import LoaderTask
from grow.network import Network
from grow.seeds.scatter import scatter
from grow.session import Session
from grow.topology import Topology
from grow.train import accuracy, train

if TYPE_CHECKING:
    import pandas as pd

Side = Literal["found", "new weights", "random structure", "rewound"]

SIDES: tuple[Side, ...] = ("new weights", "random structure", "rewound")
"""What is trained anew."""


def take_structure(network: Network, found: Topology, survivors: Mapping[str, IntArray] | None = None) -> None:
    """Give a start network the units and connections of a found one; weights of what stays are left as they are.

    survivors: by hidden space, which units of the start network stay; None: the first ones, as good as any where weights are drawn anew.
    ValueError where the found network has other layers or more units.
    """
    start = network.topology
    if [layer.layer for layer in found.layers] != [layer.layer for layer in start.layers]:
        raise ValueError(
            f"found network has the layers {[layer.layer for layer in found.layers]}, but must have those of the start network, "
            f"{[layer.layer for layer in start.layers]}; build the same network, and insert no layers"
        )
    for space in found.hidden:
        present = start.space(space.name).units
        if space.units > present:
            rule = f"at most the start network's {present}"
            raise ValueError(f"space {space.name!r} has {space.units} units, but must have {rule}; build it wider")
        staying = np.arange(space.units) if survivors is None else survivors[space.name]
        network.remove_units(space.name, np.setdiff1d(np.arange(present), staying))
    network.set_connections({layer.layer: layer.index for layer in found.layers})


def scatter_structure(network: Network, counts: Mapping[str, int], draw: int) -> None:
    """Give every layer of a start network so many connections, anywhere."""
    topology, generator = network.topology, np.random.default_rng(draw)
    network.set_connections({c.layer: scatter(c, topology.units, counts[c.layer], generator) for c in topology.layers})


def retrain(found: Fit, build: Callable[[], nn.Module], *, seeds: Iterable[int] = range(3)) -> pd.DataFrame:
    """Train the structure of ``found`` anew from every seed; one row a training: side, seed, connections, accuracy (validation data).

    ``build`` returns the start network with newly drawn weights, as it was given to `grow.fit`. The *rewound* side needs the early
    weights: ``grow.fit(..., rewind=0.02)``. `spread` sums the table up.
    """
    import pandas as pd

    rows = [_row("found", found.session.seed, found.session)]
    for seed in seeds:
        for side in SIDES if found.early is not None else SIDES[:-1]:
            session = _session(found, build, seed, side)
            for _ in train(session):
                pass
            if session.average is not None:
                session.average.adopt()
            rows.append(_row(side, seed, session))
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Number, mean, standard deviation, least and largest accuracy by side, of a table of `retrain`."""
    return table.groupby("side", sort=False)["accuracy"].agg(["count", "mean", "std", "min", "max"])


def _row(side: Side, seed: int, session: Session) -> dict[str, object]:
    return {"side": side, "seed": seed, "connections": session.network.topology.connections, "accuracy": accuracy(session)}


def _session(found: Fit, build: Callable[[], nn.Module], seed: int, side: Side) -> Session:
    """One training without any edit, before its first step."""
    chosen, topology = found.settings, found.network.topology
    torch.manual_seed(seed)
    network = Network(build(), found.network.example.cpu()).to(chosen.device)
    if side == "rewound" and found.early is not None:
        _rewind(network, found.early, topology)
    elif side == "random structure":
        scatter_structure(network, {layer.layer: layer.count for layer in topology.layers}, seed)
    else:
        take_structure(network, topology)
    if side != "rewound":
        network.rescale_to_fan_in()
    for name in chosen.frozen:
        network.layers[name].requires_grad_(False)
    task = found.session.task
    assert isinstance(task, LoaderTask)
    hasten(network, chosen, task.batch_size)
    optimizer, average = attached(network, chosen)
    steps, count = found.session.policy.steps, network.topology.connections
    policy = Policy(steps, steps, 0, schedules.constant(count), schedules.constant(0.0), {})
    return replace(
        found.session,
        network=network,
        optimizer=optimizer,
        task=task.reseeded(seed),
        policy=policy,
        learning_rate=rate(chosen, steps),
        seed=seed,
        history=History(),
        state=controller.begin(policy),
        step=found.early.step if side == "rewound" and found.early is not None else 0,
        average=average,
        followers={},
        accepted=None,
        probed=None,
    )


def _rewind(network: Network, early: Early, found: Topology) -> None:
    """Give the start network its early weights, and of these the units and connections that were found."""
    born = [space for space, units in early.survivors.items() if len(np.unique(units)) != len(units)]
    if born:
        raise ValueError(f"space {born[0]!r} has units that were born while it trained, but must have none to be rewound; leave out rewind")
    held = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    for name, tensor in early.tensors.items():
        held[name].data.copy_(tensor)
    take_structure(network, found, early.survivors)

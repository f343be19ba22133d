"""Do the criteria rank single weights as their removal changes the loss?

    python -m tests.benchmarks.obd_truth [--data-dir DIR] [--seeds 3] [--weights 1000] [--epochs 10] [--weight-decay 5e-4] [--json]
        [--only criterion=obd]

LeNet-300-100 is trained with SGD (momentum 0.9, the learning rate falling to zero as a cosine) on pixels from 0 to 1. Of all its weights
a uniform sample is drawn, and the loss over all training data is computed in float64 with each of them removed. Spearman's rank
correlation compares criteria with these changes: the signed estimate h w^2 / 2 - g w with the signed change, all others with its
absolute value. Equal values share their mean rank. The test set is not read. A row's ratio is of the rank correlations, the
criterion's over that of magnitude, seed by seed; ``correlation`` is the criterion's own, ``signed_correlation`` that with the signed
change. Without ``--json`` and ``--only`` the page of results is written anew.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from grow.criteria import CRITERIA, criterion
from grow.evidence import Effort, gather
from grow.movement import Movement
from grow.network import Network
from grow.task import Samples
from hardware.execute.ranks import Rank, run_ranks
from search.definition import StudyReference
from studies.datasets.mnist import read
from studies.datasets.split import Images
from studies.models import lenet_300_100
from tests.benchmarks.recipes import widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

RESULTS = Path("studies/results/obd-against-truth.md")
NETWORK = "lenet-300-100"
BATCH, LEARNING_RATE = 128, 0.1
SIZE, SIGNED = "size of change", "change"
MAGNITUDE, SIGNED_CRITERION = "magnitude", "obd_signed"
PROBES = 1
FEWER = 10_000  # samples for criteria that are no closer to the truth for more
TRUTH_BLOCK = 10_000  # samples at once


def raw(images: Images) -> Samples:
    """Images as pixels from 0 to 1, (N, 1, 28, 28)."""
    return Samples(torch.tensor(images.images, dtype=torch.float32).unsqueeze(1) / 255, torch.tensor(images.labels, dtype=torch.long))


def trained(data: Samples, seed: int, epochs: int, weight_decay: float) -> tuple[Network, float]:
    """The network after training, in float64, and its loss over the training data."""
    torch.manual_seed(seed)
    network = Network(lenet_300_100(), torch.zeros(1, 1, 28, 28))
    movement = Movement(network)
    network.attach(movement)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=weight_decay)
    draws = torch.Generator().manual_seed(seed)
    steps = epochs * (len(data) // BATCH)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=draws)
        for number in range(len(data) // BATCH):
            chosen = order[number * BATCH : (number + 1) * BATCH]
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            functional.cross_entropy(network(data.inputs[chosen]), data.targets[chosen]).backward()  # type: ignore[no-untyped-call]
            movement.step(network, optimizer.param_groups[0]["lr"])
            optimizer.step()
            step += 1
    for name, tensor in movement.tensors.items():
        movement.tensors[name] = tensor.double()
    network.double()
    with torch.no_grad():
        losses = [functional.cross_entropy(network(x.double()), y, reduction="sum") for x, y in data.batches(TRUTH_BLOCK)]
    return network, float(torch.stack(losses).sum()) / len(data)


@torch.no_grad()
def true_changes(network: Network, data: Samples, sample: Tensor) -> Tensor:
    """Change of the mean loss when each sampled weight alone is removed, exactly, in float64, (N,).

    Positions count through the weights of all layers. What a weight cannot reach is computed once for all of them.
    """
    first, second, third = network.layers.values()
    sizes = [math.prod(layer.weight_shape) for layer in (first, second, third)]
    changes = torch.zeros(len(sample), dtype=torch.float64)
    for inputs, targets in data.batches(TRUTH_BLOCK):
        x = inputs.flatten(1).double()
        a1 = functional.linear(x, first.weight, first.bias)
        a2 = functional.linear(a1.relu(), second.weight, second.bias)
        a3 = functional.linear(a2.relu(), third.weight, third.bias)
        base = functional.cross_entropy(a3, targets, reduction="none")

        def rise(found: Tensor, chosen: Tensor, base: Tensor = base, targets: Tensor = targets) -> Tensor:
            """Sum of the loss changes of the chosen samples, given their new logits."""
            return (functional.cross_entropy(found, targets[chosen], reduction="none") - base[chosen]).sum()

        for number, position in enumerate(sample.tolist()):
            if position < sizes[0]:
                unit, source = divmod(position, first.weight_shape[1])
                change = (a1[:, unit] - first.weight[unit, source] * x[:, source]).relu() - a1[:, unit].relu()
                chosen = change.nonzero().flatten()
                hidden = (a2[chosen] + change[chosen, None] * second.weight[:, unit]).relu()
                changes[number] += rise(functional.linear(hidden, third.weight, third.bias), chosen)
            elif position < sizes[0] + sizes[1]:
                unit, source = divmod(position - sizes[0], second.weight_shape[1])
                change = (a2[:, unit] - second.weight[unit, source] * a1[:, source].relu()).relu() - a2[:, unit].relu()
                chosen = change.nonzero().flatten()
                changes[number] += rise(a3[chosen] + change[chosen, None] * third.weight[:, unit], chosen)
            else:
                unit, source = divmod(position - sizes[0] - sizes[1], third.weight_shape[1])
                logits = a3.clone()
                logits[:, unit] -= third.weight[unit, source] * a2[:, source].relu()
                changes[number] += rise(logits, torch.arange(len(logits)))
    return changes / len(data)


def scores(network: Network, data: Samples, name: str, sample: Tensor, seed: int) -> Tensor:
    """What a criterion gives the sampled weights, with all training data as its evidence, (N,)."""
    chosen = criterion(name)
    dtype = torch.float64 if chosen.needs <= {"gradient", "curvature"} else torch.float32
    network.to(dtype)  # from here on nothing is compared exactly
    seen = data if dtype == torch.float64 else Samples(data.inputs[:FEWER], data.targets[:FEWER])
    batches = [(x.to(dtype), y) for x, y in seen.batches(BATCH if "taylor" in chosen.needs else 2000)]
    found = gather(network, batches, functional.cross_entropy, chosen.needs, torch.Generator().manual_seed(seed), Effort(probes=PROBES))
    return torch.cat([chosen.score(found.layer(layer)).flatten() for layer in network.layers])[sample]


def correlations(data: Samples, seed: int, names: Sequence[str], weights: int, epochs: int, weight_decay: float) -> list[dict[str, object]]:
    """Rank correlation of criteria with the truth, for one seed."""
    network, loss = trained(data, seed, epochs, weight_decay)
    sample = torch.randperm(network.topology.connections, generator=torch.Generator().manual_seed(seed))[:weights].sort().values
    sys.stderr.write(f"seed {seed}: trained to loss {loss:.3g}\n")
    truth = true_changes(network, data, sample)
    silent = int((truth == 0).sum())
    sys.stderr.write(f"seed {seed}: {weights} weights removed one at a time, {silent} without any effect\n")
    rows: list[dict[str, object]] = []
    for name in names:
        found = scores(network, data, name, sample, seed)
        against = {SIGNED: truth, SIZE: truth.abs()}
        rho = {what: float(spearmanr(found.numpy(), values.numpy()).statistic) for what, values in against.items()}
        rows.append({"seed": seed, "criterion": name, "loss": loss, "silent": silent, **rho})
        sys.stderr.write(f"seed {seed}: {name} {rho}\n")
    return rows


def share(
    rank: Rank, data_dir: str | None, seeds: int, names: tuple[str, ...], settings: tuple[int, int, float]
) -> list[list[dict[str, object]]]:
    """The rows of every seed that falls to this process."""
    data = raw(read(StudyReference("mnist").load().data(None if data_dir is None else Path(data_dir))).training)
    return [correlations(data, seed, names, *settings) for seed in range(rank.number, seeds, rank.count)]


def table(frame: pd.DataFrame) -> str:
    """Markdown: one row a criterion, mean over the seeds and lowest to highest."""
    lines = ["| criterion | against the signed change | against its absolute value |", "|---|---|---|"]
    for name, rows in frame.groupby("criterion", sort=False):
        cells = [f"{rows[c].mean():.3f} ({rows[c].min():.3f} to {rows[c].max():.3f})" for c in (SIGNED, SIZE)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(frame: pd.DataFrame, arguments: argparse.Namespace, sha256: str) -> str:
    """The results as a page."""
    seeds = frame.drop_duplicates("seed")
    losses = ", ".join(f"{value:.3g}" for value in seeds["loss"])
    silent = ", ".join(str(value) for value in seeds["silent"])
    sizes = ", ".join(str(s) for s in seeds["seed"])
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    options = f"--weights {arguments.weights} --epochs {arguments.epochs} --weight-decay {arguments.weight_decay:g}"
    command = f"python -m tests.benchmarks.obd_truth --seeds {arguments.seeds} {options}"
    return f"""# OBD against the true loss change

Spearman's rank correlation between criteria and the change of the training loss when single weights are removed.

- LeNet-300-100, trained with SGD: {arguments.epochs} epochs of {arguments.samples} training digits, momentum 0.9, batch {BATCH},
  learning rate {LEARNING_RATE} falling to zero as a cosine, weight decay {arguments.weight_decay:g}. Training loss
  afterwards: {losses}.
- {arguments.weights} weights a seed, drawn uniformly from all 266,200. The loss is computed over all training digits, in float64,
  with each weight removed alone. Pixels are from 0 to 1, so that some inputs are always zero: weights without any effect
  ({silent} of them, by seed) are counted, and tie.
- Evidence for obd, obd_signed, snip and gradient is gathered from all training digits, for the others from the first {FEWER:,};
  `taylor` in batches of {BATCH}, Hutchinson and drawn labels with {PROBES} probe a batch of 2,000.
- Mean over {len(seeds)} seeds, in brackets lowest to highest. Criteria meant for use before training (snip, synflow, grasp) and for
  growth (gradient, momentum, random) stand here for comparison. The test set is not read.

{table(frame)}

Measured on {platform.machine()}, {versions}, 1 thread, seeds {sizes}, data {sha256[:12]}, by
`{command}`.
"""


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every criterion but magnitude; there is one part only, which says nothing to connectivity."""
    told: Case = {"network": NETWORK, "units": widest("mnist", NETWORK), "batch": BATCH, "density": 1.0, "device": "cpu"}
    more: Case = {"weights": arguments.weights, "epochs": arguments.epochs}
    return [{**told, **more, "criterion": name} for name in CRITERIA if name not in (MAGNITUDE, "connectivity")]


def compared(case: Case, frame: pd.DataFrame) -> dict[str, object]:
    """The row of a case: the signed criterion by the signed change."""
    ours, theirs = (frame[frame.criterion == name].set_index("seed") for name in (case["criterion"], MAGNITUDE))
    own = ours[SIGNED if case["criterion"] == SIGNED_CRITERION else SIZE]
    told = {"correlation": float(own.mean()), "signed_correlation": float(ours[SIGNED].mean())}
    more = {"magnitude_correlation": float(theirs[SIZE].mean()), "loss": float(ours.loss.mean()), "silent": int(ours.silent.median())}
    return row("obd_truth", case, "rank correlation of magnitude", (own / theirs[SIZE]).tolist(), **told, **more)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=1, help="seeds at the same time")
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    definition = StudyReference("mnist").load()
    source = definition.data(arguments.data_dir)
    arguments.samples = len(raw(read(source).training))
    settings = (arguments.weights, arguments.epochs, arguments.weight_decay)
    folder = None if arguments.data_dir is None else str(arguments.data_dir.resolve())
    asked = {MAGNITUDE, *(str(case["criterion"]) for case in chosen)}
    names = tuple(name for name in CRITERIA if name in asked)
    shares = run_ranks(share, folder, arguments.seeds, names, settings, ranks=arguments.workers, timeout_s=None)
    rows = [found for seed in range(arguments.seeds) for found in shares[seed % arguments.workers][seed // arguments.workers]]
    frame = pd.DataFrame(rows)
    if not arguments.json and not arguments.only:
        _, heading, by_hand = RESULTS.read_text().partition("\n## ") if RESULTS.exists() else ("", "", "")  # what else was tried stays
        RESULTS.write_text(report(frame, arguments, source.sha256) + heading + by_hand)
    write([compared(case, frame) for case in chosen], arguments.json)


if __name__ == "__main__":
    from tests.benchmarks.obd_truth import main as importable  # ranks find `share` by its name, where this is no main

    importable()

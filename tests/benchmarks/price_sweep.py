"""What does the price buy? Accuracy, communication volume and throughput over a range of prices.

    python -m tests.benchmarks.price_sweep [--data-dir DIR] [--prices 0 4 16 64 256 1024] [--parts 2] [--steps 600] [--seeds 1]
        [--hardware FILE_OR_PRESET] [--trained FOLDER] [--clock] [--save FOLDER] [--json] [--only price=64]

Trains the recipe of `tests.benchmarks.price` once for every price and seed: same start, density, pattern and partition to begin with.
Throughput is that of the profile of this machine's CPU workers (predicted), or of a preset or a saved profile (simulated), next to
that of the dense start network on one device of the same machine; with ``--clock`` it is measured instead, all networks and the dense one
in turns. ``--trained`` keeps the networks, and takes those that are there already: train on a busy machine, time on a quiet one.
``--save`` writes the table (CSV) and the picture (SVG) there. A row's ratio is of the throughputs, with a price over without, seed by seed;
``--only`` chooses among the prices, and keeps 0, which all are compared with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from grow import checkpoint
from grow.network import Network
from grow.topology import Topology
from hardware.cache import obtain
from hardware.cost import predict
from hardware.devices import discover
from hardware.execute.measure import Job, measure_throughput
from hardware.partition import Partition
from hardware.presets import hardware
from hardware.price import price_by_time
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.recipe import Recipe
from tests.benchmarks import price
from tests.benchmarks.panels import Panel, picture
from tests.benchmarks.recipes import widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

PANELS = (
    Panel("accuracy", "validation accuracy %", zero=False),
    Panel("communication_volume", "communication volume"),
    Panel("speed", "training throughput against dense on one device"),
)
CAPTION = "price, in median saliencies per halo unit"
TIMED_RATE = 1e-4
"""Learning rate while the clock runs: far from divergence, whose numbers are slow."""


def dense_samples_per_s(topology: Topology, profile: Profile, batch: int) -> float:
    """Throughput of the dense start network on one device."""
    whole = topology.with_index({layer.layer: None for layer in topology.layers})
    return predict(Workload.of(whole), "single", None, profile, batch).samples_per_s


def folder_of(chosen: Recipe, kept: Path) -> Path:
    """Where the trained network of a recipe is kept."""
    return kept / sha256(json.dumps(chosen.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def trained(material: build.Material, profile: Profile, kept: Path) -> Network:
    """The trained network of a recipe: out of the folder that keeps them, if it is there."""
    chosen = material.recipe
    folder = folder_of(chosen, kept)
    if not folder.exists():
        checkpoint.save(folder / f"{chosen.steps:06}", price.trained(chosen, profile).network)
    return build.trained_network(material, folder)


def outcome(material: build.Material, network: Network, profile: Profile) -> dict[str, Any]:
    """What came of one training."""
    chosen = material.recipe
    found: dict[str, Any] = price.measures(network, material.task, chosen)
    assert network.parts is not None
    work, partition = Workload.of(network.topology), Partition(network.parts, chosen.devices)
    start = build.start_network(material).topology
    step = predict(work, "units", partition, profile, chosen.batch_size)
    return {
        **found,
        "crossing_share": found["crossing_units"] / found["hidden_units"],
        "samples_per_s": step.samples_per_s,
        "speed": step.samples_per_s / dense_samples_per_s(start, profile, chosen.batch_size),
        "word": profile.word,
        "price_by_time": price_by_time(work, partition, profile, chosen.batch_size),
    }


def job(recipe_and_folder: tuple[dict[str, Any], str | None]) -> Job:
    """A trained network, out of its folder, on its devices; without a folder the dense start network on one, ready to be timed."""
    values, folder = recipe_and_folder
    material = build.material(Recipe.from_json(values))
    inputs, targets = material.task.train_batch(0)
    if folder is None:
        return Job(build.start_network(material), "single", 1, inputs, targets, learning_rate=TIMED_RATE)
    network = build.trained_network(material, Path(folder))
    return Job(network, "units", material.recipe.devices, inputs, targets, network.parts, learning_rate=TIMED_RATE)


def timed(table: pd.DataFrame, recipes: Sequence[Recipe], kept: Path, profile: Profile) -> pd.DataFrame:
    """The table with the clock's throughput in place of the predicted one."""
    jobs: list[tuple[dict[str, Any], str | None]] = [(recipes[0].to_json(), None)]
    jobs += [(recipe.to_json(), str(folder_of(recipe, kept))) for recipe in recipes]
    dense, *found = measure_throughput(job, jobs, ranks=recipes[0].devices, choose=profile.kernel)
    rates = [each.samples_per_s for each in found]
    return table.assign(samples_per_s=rates, speed=[rate / dense.samples_per_s for rate in rates], word="measured")


def cases(asked: argparse.Namespace) -> list[Case]:
    """Every price above 0."""
    told: Case = {"network": asked.network, "units": widest(price.STUDY, asked.network), "batch": price.BATCH, "density": asked.density}
    device = "cpu" if asked.hardware is None else hardware(asked.hardware).devices[0].kind
    return [
        {**told, "device": device, "parts": asked.parts, "steps": asked.steps, "price": value}
        for value in sorted(set(asked.prices))
        if value > 0
    ]


def rows(table: pd.DataFrame, chosen: Sequence[Case]) -> list[dict[str, object]]:
    """The benchmark's rows: throughput with each price against price 0, seed by seed."""
    free = table[table.price == 0].set_index("seed")
    found = []
    for case in chosen:
        mine = table[table.price == case["price"]].set_index("seed")
        ratios, points = mine.samples_per_s / free.samples_per_s, mine.accuracy - free.accuracy
        volumes = free.communication_volume / mine.communication_volume.clip(lower=1)
        extra = {"accuracy_difference": float(points.mean()), "volume_ratio": float(volumes.median()), "word": str(table.word[0])}
        found.append(row("price_sweep", case, "price 0", ratios.tolist(), **extra))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", default="mlp-1024x3")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--prices", type=float, nargs="+", default=[0, 4, 16, 64, 256, 1024])
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--hardware")
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--save", type=Path)
    add_options(parser)
    asked = parser.parse_args(arguments)
    chosen = selected(cases(asked), asked.only)
    torch.set_num_threads(1)
    profile = obtain(discover("cpu", asked.parts).devices) if asked.hardware is None else hardware(asked.hardware)
    base = replace(price.recipe(asked), devices=asked.parts)
    wanted = sorted({0.0, *(float(case["price"]) for case in chosen)})
    materials = [build.material(replace(base, seed=seed, price=value)) for seed in range(asked.seeds) for value in wanted]
    with nullcontext(asked.trained) if asked.trained else TemporaryDirectory() as folder:
        kept = Path(folder).resolve()
        table = pd.DataFrame([outcome(material, trained(material, profile, kept), profile) for material in materials])
        if asked.clock:
            table = timed(table, [material.recipe for material in materials], kept, profile)
    if asked.save is not None:
        asked.save.mkdir(parents=True, exist_ok=True)
        table.to_csv(asked.save / "price-sweep.csv", index=False)
        (asked.save / "price-sweep.svg").write_text(picture(table, "price", CAPTION, PANELS))
    sys.stderr.write(table.round(4).to_string(index=False) + "\n")
    write(rows(table, chosen), asked.json)


if __name__ == "__main__":
    from tests.benchmarks.price_sweep import main as importable  # ranks find `job` by its name, where this is no main

    importable()

"""One recipe trained on all ranks: what every rank does, and what is left in the folder.

    FOLDER/
      recipe.json      what was trained
      metrics.jsonl    loss, accuracy, density and rate on the way
      history.jsonl    one event for every edit
      checkpoint/      the last checkpoints, which know nothing of the ranks: any number of them goes on from there
      network/         the resulting network
      result.json      its figures

Rank 0 alone reads and writes it, so that hosts need no common file system.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import distributed

from grow import checkpoint
from grow.history import History
from grow.train import DivergedError, Session, accuracy
from hardware.execute.exchange import Peers
from hardware.execute.ranks import Rank
from hardware.execute.train import Training
from hardware.execute.watch import Watch
from hardware.layout import UNNAMED
from hardware.partition import Partition, communication_volume, crossing_units
from hardware.profile import Profile
from hardware.shard import StrategyName, by_density
from hardware.workload import Workload
from search import build
from search.divide import Divider
from search.errors import ConfigurationError, RunLockedError
from search.files import append_line, locked, write_json
from search.recipe import UNPRICED, Recipe
from search.rundir import TrialFolder
from search.terminal import say
from search.worker import EVALUATIONS, METRICS, go_to, metrics

LINE_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What all ranks are asked for. profile: file of measured kernel times; None: kernels are chosen by density."""

    recipe: Mapping[str, Any]
    folder: str
    strategy: StrategyName
    profile: str | None = None


def train(rank: Rank, order: Mapping[str, Any]) -> dict[str, Any] | None:
    """Train an `Order`, given as plain data, from the folder's last checkpoint to its end. On rank 0 the result, else None.

    Where a rank is told to stop, all of them do so after the same step, with a checkpoint, and every one returns that step.
    """
    asked = Order(**order)
    recipe = replace(Recipe.from_json(asked.recipe), device="cuda" if rank.device.type == "cuda" else "cpu")
    with Watch(rank.store, rank.number, rank.count, rank.lost) as watch:
        try:
            with watch.busy("starting"):
                _check_same(rank, asked)
            return _train(rank, recipe, asked, watch)
        except RuntimeError as error:
            if _broken(error):
                watch.explain(error)
            raise


def _train(rank: Rank, recipe: Recipe, order: Order, watch: Watch) -> dict[str, Any] | None:
    files = TrialFolder(Path(order.folder))
    with _owned(files, rank):
        with watch.busy("starting"):
            training = _begin(rank, recipe, order, watch, files)
        session = training.session
        try:
            rate, stopped = _advance(training, recipe, files, rank)
        except DivergedError as error:
            result: dict[str, Any] = {"state": "failed", "failure": str(error)}
        else:
            training.save(files.checkpoint)
            if stopped:
                return {"state": "stopped", "step": session.step}
            with watch.busy("evaluating"):
                result = {"state": "complete", "ranks": rank.count, "strategy": _name(order.strategy), **_figures(session, recipe, rate)}
        if rank.number:
            return None
        with watch.busy("saving"):
            if result["state"] == "complete":
                checkpoint.save(files.path / "network", session.network)
                result["network"] = str(files.path / "network")
            write_json(files.result, result)
        return result


def _begin(rank: Rank, recipe: Recipe, order: Order, watch: Watch, files: TrialFolder) -> Training:
    """The training as the folder's last checkpoint left it."""
    profile = None if order.profile is None else Profile.load(Path(order.profile))
    session = build.session(build.material(recipe), profile, History(files.history if rank.number == 0 else None))
    if rank.number == 0:
        _resume(session, files)
        _note_other_machine(profile)
        if recipe.price and not recipe.priced:
            say(f"price is {recipe.price}, but {UNPRICED}")
    return Training(
        session,
        Peers(rank.number, rank.count),
        order.strategy,
        Divider(session.network, recipe, rank.count, profile),
        choose=by_density if profile is None else profile.kernel,
        device=rank.device,
        watch=watch,
    )


def _name(strategy: StrategyName) -> str:
    return strategy if isinstance(strategy, str) else UNNAMED


@contextmanager
def _owned(files: TrialFolder, rank: Rank) -> Iterator[None]:
    """Rank 0 alone works on the folder. RunLockedError if another training does."""
    if rank.number:
        yield
        return
    try:
        recipe = locked(files.recipe, wait=False)
    except BlockingIOError as error:
        raise RunLockedError(f"{files.path} is being trained by another process; wait for it, or choose another --folder") from error
    with recipe:
        yield


def _resume(session: Session, files: TrialFolder) -> None:
    """Go to the folder's last whole checkpoint, or before the first step. What was noted after that point is forgotten."""
    go_to(session, files, build.last_checkpoint(files.checkpoint))
    files.result.unlink(missing_ok=True)


def _note_other_machine(profile: Profile | None) -> None:
    """Say that kernels are chosen by another machine's times, which is harmless but may be slow."""
    differences = [] if profile is None else profile.differences()
    if profile is not None and differences:
        told = f"kernels are chosen by the profile of {profile.described}, but {differences[0]}"
        say(f"{told}; for times of this machine give --hardware with what grow profile --save writes")


def _advance(training: Training, recipe: Recipe, files: TrialFolder, rank: Rank) -> tuple[float, bool]:
    """Train to the end, with metrics and checkpoints on the way. Training steps per second, and whether it was stopped before the end."""
    every = max(1, recipe.steps // METRICS)
    began = time.monotonic()
    first: int | None = None
    shown = began
    rate = 0.0
    for step in training.steps():
        first = step - 1 if first is None else first
        if step % every == 0 or step == recipe.steps:
            losses = training.losses()
            rate = (step - first) / max(1e-9, time.monotonic() - began)
            evaluated = step % max(every, recipe.steps // EVALUATIONS) == 0
            with training.busy("evaluating"):
                if evaluated:
                    training.collect_weights()
                if rank.number == 0:
                    line = metrics(training.session, losses[-1], rate, evaluated=evaluated)
                    append_line(files.metrics, line)
                    if time.monotonic() - shown >= LINE_EVERY_S or step == recipe.steps:
                        shown = time.monotonic()
                        _say(line, recipe.steps)
        if training.stopping(rank.stopping) and step < recipe.steps:
            return rate, True
        if step % recipe.checkpoint_interval == 0:
            training.save(files.checkpoint)
    return rate, False


def _say(line: Mapping[str, Any], steps: int) -> None:
    """Where the training stands, on stderr."""
    facts = [f"step {line['step']}/{steps}", f"loss {line['loss']:.4g}"]
    if line["accuracy"] is not None:
        facts.append(f"accuracy {100 * line['accuracy']:.2f} %")
    rate = line["steps_per_s"]
    facts += [f"density {100 * line['density']:.2f} %", f"{rate:.3g} steps/s", f"{(steps - line['step']) / max(1e-9, rate):.0f} s left"]
    say(", ".join(facts))


def _figures(session: Session, recipe: Recipe, steps_per_s: float) -> dict[str, Any]:
    """What the trained network is. Throughput is measured, over the whole training with its edits."""
    topology, parts = session.network.topology, session.network.parts
    found: dict[str, Any] = {
        "steps": session.step,
        "accuracy": accuracy(session),
        "density": topology.density,
        "connections": topology.connections,
        "units": dict(topology.units),
        "grown": session.history.total("grow_connections", "add_units"),
        "pruned": session.history.total("prune_connections", "remove_units", "merge_units"),
        "measured_samples_per_s": steps_per_s * recipe.batch_size or None,  # None where nothing was left to train
    }
    if parts is not None:
        work, partition = Workload.of(topology), Partition(parts, recipe.devices)
        found["crossing_units"] = crossing_units(work, partition)
        found["communication_volume"] = communication_volume(work, partition)
    return found


def _check_same(rank: Rank, order: Order) -> None:
    """ConfigurationError where this rank was given another recipe or strategy than rank 0."""
    said = {key: value for key, value in asdict(order).items() if key in ("recipe", "strategy")}
    mine = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if rank.number == 0:
        rank.store.set("order", mine)
    elif rank.store.get("order").decode() != mine:
        raise ConfigurationError(
            f"recipe or strategy of rank {rank.number} is not that of rank 0, but must be; give all ranks the same command and files"
        )


def _broken(error: RuntimeError) -> bool:
    """Whether a message to another rank failed, rather than something of this rank's own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "onnection" in str(error)


def settle() -> None:
    """Leave the process group once every rank is done."""
    distributed.barrier()
    distributed.destroy_process_group()

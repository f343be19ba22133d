"""One trial in one process: `python -m search.worker RECIPE`.

Trains what the recipe says, with checkpoints, and leaves `result.json`. On SIGTERM, and when its parent ends, it writes a checkpoint
and ends with no result; the next worker of the trial goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch

from grow import checkpoint
from grow.checkpoint import Checkpoint
from grow.history import History
from grow.task import some
from grow.train import DivergedError, Session, accuracy, evaluate, train
from hardware.profile import Profile
from search import build
from search.build import Material
from search.early_stopping import Ending, Reached, decide, noted, read_yardstick, rung_steps
from search.errors import DEBUG_VARIABLE, StoppedError, StorageError, exit_code_of, full, memory_ran_out
from search.files import append_line, locked, read_json, read_lines, write_json, write_text
from search.process import NOTICE, Signals, die_with_parent, noted_signals, orphaned
from search.recipe import Recipe
from search.records import RESULT
from search.run_profile import frozen_profile
from search.rundir import RunFolder, TrialFolder

METRICS = 50
"""Lines of metrics that a training writes."""

EVALUATIONS = 10
"""How many of them hold an accuracy."""


def work(path: Path) -> None:
    """Train the trial of a recipe file from its last checkpoint to its result."""
    die_with_parent()
    with locked(path, wait=True):  # a killed parent's worker may still be writing its last checkpoint
        try:
            _work(path)
        except OSError as error:
            if full(error):
                raise StorageError(f"{error}: make room, and resume the run") from error
            raise


def _work(path: Path) -> None:
    files, run = TrialFolder(path.parent), RunFolder(path.parent.parent.parent)
    recipe = Recipe.from_json(read_json(path))
    torch.set_num_threads(recipe.threads)
    profile = frozen_profile(run)
    with noted_signals() as signals:
        saved = last_whole(files.checkpoint)
        if saved is not None and RESULT in saved.meta["extra"]:
            write_json(files.result, saved.meta["extra"][RESULT])  # killed between its last checkpoint and its result
            return
        try:
            training = begin(build.material(recipe), profile, files, with_history(saved, files))
            behind = advance(training, recipe, files, signals, profile)
        except DivergedError as error:
            write_json(files.result, {"state": "failed", "failure": str(error)})
            return
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            write_json(files.result, {"state": "infeasible", "failure": f"memory ran out: {' '.join(str(error).split())}"})
            return
        if behind is None:
            result = {"state": "complete", **asdict(build.figures(training, recipe, profile))}
        else:
            result = {"state": "stopped_early", "failure": behind.reason, "step": training.step, "expected_accuracy": behind.accuracy}
        checkpoint.save_session(files.checkpoint, training, {RESULT: result})  # with the final partition
        write_json(files.result, result)


def last_whole(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint, None for a beginning anew. What is lost by that is said."""
    saved, damaged = checkpoint.last_whole(folder)
    where = "the start" if saved is None else f"step {saved.meta['extra']['training']['step']}"
    for error in damaged:
        sys.stderr.write(f"{NOTICE}{error}; it is lost, and the training goes on from {where}\n")
    return saved


def with_history(saved: Checkpoint | None, files: TrialFolder) -> Checkpoint | None:
    """The checkpoint; none where the history lacks some of its events, which only a training from the start makes anew. That is said."""
    if saved is None:
        return None
    told = saved.meta["extra"]["training"]
    try:
        History(files.history).rewind(told["events"])
    except (ValueError, TypeError):
        damage = f"{files.history} lacks events that the checkpoint of step {told['step']} has"
        sys.stderr.write(f"{NOTICE}{damage}; the training goes on from the start\n")
        return None
    return saved


def begin(material: Material, profile: Profile, files: TrialFolder, saved: Checkpoint | None) -> Session:
    """The training at a checkpoint, or before its first step. What was noted after that point is forgotten."""
    training = build.session(material, profile, History(files.history))
    go_to(training, files, saved)
    return training


def go_to(training: Session, files: TrialFolder, saved: Checkpoint | None) -> None:
    """Let a training, and its files, stand at a checkpoint, or before the first step.

    Checkpoints go first: until they have, events and metrics are those of every one that is left, so that a kill in between costs nothing.
    """
    if saved is not None:
        checkpoint.restore_session(training, saved)
    checkpoint.forget_after(files.checkpoint, training.step)
    if saved is None:
        files.history.unlink(missing_ok=True)  # what is damaged could not be rewound
        training.history.rewind(0)
    kept = [line for line in read_lines(files.metrics) if isinstance(step := line.get("step"), int) and step <= training.step]
    write_text(files.metrics, "".join(json.dumps(line) + "\n" for line in kept))


def advance(training: Session, recipe: Recipe, files: TrialFolder, signals: Signals, profile: Profile) -> Ending | None:
    """Train to the end, with metrics and checkpoints on the way; or until no way leads to the front any more: then why."""
    judged = read_yardstick(files)
    rungs = {} if judged is None else rung_steps(recipe.steps)
    begun_at, begun, behind = time.monotonic(), training.step, None
    every = max(1, recipe.steps // METRICS)
    for progress in train(training):
        rung = rungs.get(progress.step)
        if progress.step % every == 0 or progress.step == recipe.steps or rung is not None:
            rate = (progress.step - begun) / max(1e-9, time.monotonic() - begun_at)
            evaluated = progress.step % max(every, recipe.steps // EVALUATIONS) == 0
            line = metrics(training, progress.loss, rate, evaluated=evaluated)
            if judged is not None and rung is not None:
                seen = some(training.task.validation(), judged.samples, judged.of, recipe.seed)
                mine = Reached(accuracy(training, seen), build.throughput_so_far(training, recipe, profile))
                line["rung"] = noted(rung, mine)
                behind = decide(mine, rung, recipe.initial, judged)
            append_line(files.metrics, line)
            if behind is not None:
                return behind
        stopped = signals.received is not None or orphaned()
        if stopped or progress.step % recipe.checkpoint_interval == 0:  # after the metrics, of which none must be missing then
            checkpoint.save_session(files.checkpoint, training)
        if stopped:
            raise StoppedError(signals.received or signal.SIGTERM)
    return None


def metrics(training: Session, loss: float, steps_per_s: float, *, evaluated: bool) -> dict[str, object]:
    """Where the training stands. The accuracy on the way is that of the first validation batch: it is to be seen, not to be judged by."""
    topology = training.network.topology
    return {
        "step": training.step,
        "phase": "growing and pruning" if training.step < training.policy.last_update else "training",
        "loss": loss,
        "accuracy": _glance(training) if evaluated else None,
        "density": topology.density,
        "connections": topology.connections,
        "units": {space.name: space.units for space in topology.hidden},
        "steps_per_s": steps_per_s,
    }


def _glance(training: Session) -> float:
    """Accuracy on the first validation batch."""
    return evaluate(training.network, islice(training.task.validation(), 1), training.task.correct, training.outputs)


def main() -> int:
    """Entry point."""
    os.environ[DEBUG_VARIABLE] = "1"  # the log of a trial is the place for tracebacks
    return exit_code_of(lambda: work(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())

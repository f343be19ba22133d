"""Jobs: processes at work on a trial, which train it or time what came of it. `Jobs` starts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from optuna.trial import FrozenTrial, TrialState

from search import progress
from search.baselines import DATA_PARALLEL, role_of
from search.early_stopping import Peer, Reached, Yardstick, looked_at, reached, write_yardstick
from search.files import number_in, read_json, read_json_if_valid, write_json
from search.options import Options, Plan
from search.process import THREADS, Child, out_of_memory_kills, spawn
from search.progress import Progress
from search.quiet import Hold
from search.records import checked_if_valid
from search.restore import keep
from search.run.parent import Parent
from search.run.state import note
from search.run.trials import Trials
from search.rundir import TrialFolder
from search.slots import Slot
from search.storage import feasible


@dataclass(frozen=True)
class Before:
    """How things stood when a worker began, by which its end is judged. checkpoint: the name of the last one, empty if there was none."""

    checkpoint: str
    out_of_memory_kills: int
    logged_bytes: int


@dataclass(frozen=True)
class Job:
    """A process at work on a trial: it trains, or it is timed. hold: on the slot's devices."""

    number: int
    slot: Slot
    process: Child
    before: Before
    hold: Hold
    timing: bool = False


def last_checkpoint(files: TrialFolder) -> str:
    """Name of the last checkpoint of a trial, empty before the first."""
    return max((path.name for path in files.checkpoint.glob("[0-9]*[0-9]")), default="")


class Jobs:
    """What starts the processes of a run's trials."""

    def __init__(self, parent: Parent, options: Options, plan: Plan, trials: Trials, view: Progress) -> None:
        self._folder, self._nursery, self._progress = parent.folder, parent.nursery, view
        self._options, self._plan, self._trials = options, plan, trials

    def train(self, number: int, slot: Slot, hold: Hold) -> Job:
        """Train a trial on the first device of a slot, from its last checkpoint on."""
        files = self._folder.trial(number)
        files.path.mkdir(parents=True, exist_ok=True)
        keep(files, self._trials.known()[number])
        if read_json_if_valid(files.recipe) is None:  # it follows from the journal
            write_json(files.recipe, self._trials.recipe(number).to_json())
        if self._options.early_stopping:
            write_yardstick(files, self._yardstick(number))
        with open(files.log, "ab") as log:
            before = _before(files, log)
            process = self._worker(files, slot, log)
        note(self._folder, "trial_started", number=number)
        self._progress.say(progress.started(number, role_of(number), read_json(files.recipe), again=bool(before.checkpoint)))
        return Job(number, slot, process, before, hold)

    def _worker(self, files: TrialFolder, slot: Slot, log: IO[bytes]) -> Child:
        if slot.kind == "cpu":
            return self._nursery.start("search.worker", [str(files.recipe)], environment=slot.environment(), cores=[slot.index], log=log)
        # Where training takes a GPU, a fresh interpreter costs little, and nothing of CUDA's can be inherited.
        environment = slot.environment() | {name: "1" for name in THREADS}
        return spawn("search.worker", [str(files.recipe)], environment=environment, stdout=log, stderr=log)

    def clock(self, number: int, slot: Slot, hold: Hold) -> Job:
        """Time a trained network on the devices of a slot."""
        files = self._folder.trial(number)
        arguments = [str(self._folder.path), "--time", str(number), "--test"]
        cores = slot.indices if slot.kind == "cpu" and self._options.gpus_per_trial is not None else ()
        with open(files.log, "ab") as log:
            before = _before(files, log)
            process = self._nursery.start("search.measure", arguments, environment=slot.environment(whole=True), cores=cores, log=log)
        note(self._folder, "measuring", number=number)
        self._progress.say(f"measuring trial {number} on the devices")
        return Job(number, slot, process, before, hold, timing=True)

    # What a trial is judged by while it trains

    def _yardstick(self, number: int) -> Yardstick:
        """The trials that have been told, as far as they were trained to their end; none for a baseline, which therefore is."""
        told = self._trials.told() if number > DATA_PARALLEL else []
        peers = (self._peer(trial) for trial in told if trial.state == TrialState.COMPLETE)
        known = tuple(peer for peer in peers if peer is not None)
        recipe, validation = read_json(self._folder.trial(number).recipe), int(str(self._plan.data["validation"]))
        seen = looked_at(int(number_in(recipe, "steps") * number_in(recipe, "batch_size")), validation)
        return Yardstick(known, self._trials.lowest_accuracy() or 0.0, seen, validation)

    def _peer(self, trial: FrozenTrial) -> Peer | None:
        """A trial that was trained to its end; None where its files are damaged."""
        files = self._folder.trial(trial.number)
        result, recipe = checked_if_valid(files.result), read_json_if_valid(files.recipe)
        if result is None or recipe is None or result["state"] != "complete":
            return None
        ended = Reached(number_in(result, "accuracy"), number_in(result, "predicted_samples_per_s"))
        return Peer(trial.number, str(recipe["initial"]), feasible(trial), reached(files), ended)


def _before(files: TrialFolder, log: IO[bytes]) -> Before:
    return Before(last_checkpoint(files), out_of_memory_kills(), log.tell())

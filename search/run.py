"""The parent of a run: it asks the sampler, spawns workers, and tells the study how they ended. It never needs torch.

    create the folder -> prepare (child: data, network, profile) -> trials (children, one a device) -> measure (child) -> document

Every step leaves files from which the next can start, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from search import progress
from search.errors import ChildError, RunError, RunNotFoundError, StoppedError
from search.options import Options, RunRecord
from search.process import POLL_S, Signals, Slot, ending, last_words, noted_signals, slots, spawn, stop, wait
from search.progress import Progress, open_progress
from search.rundir import (
    RunFolder,
    RunLock,
    append_line,
    create_run_folder,
    missing_folders,
    read_json,
    removed_on_error,
    write_json,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from search.recipe import Recipe, TrialRole
    from search.space import Range

FAILURES_IN_A_ROW = 5
"""Search trials that may fail one after the other before the run is given up."""

DATA_PARALLEL = 1
"""Number of the data-parallel baseline; the dense one is trial 0."""


def start(options: Options, study_sha256: str | None, runs_dir: Path, name: str | None) -> RunFolder:
    """Begin a new run and work on it to the end of its budget; a run that cannot begin leaves nothing behind."""
    stem = Path(options.study.rpartition(":")[2]).name
    made = missing_folders(runs_dir)
    folder = create_run_folder(runs_dir, name, stem)
    unfit = (ChildError, ValueError, OSError)
    with removed_on_error(folder, unfit, made):
        options.write(folder)
        RunRecord(run=folder.name, created_at=_now(), versions=_versions(), study_sha256=study_sha256).write(folder)
    with RunLock(folder), noted_signals() as signals, _state_kept(folder):
        _note(folder, "run_created")
        with removed_on_error(folder, unfit, made):
            _prepare(folder, signals)
        _work(folder, signals)
    return folder


def resume(folder: RunFolder) -> RunFolder:
    """Go on with a run until its budget is met. One whose budget is met already is left as it is."""
    record = RunRecord.read(folder)
    Options.read(folder)
    if record.state == "complete":
        return folder
    if record.plan is not None:
        read_json(folder.hardware)
        if not folder.journal.is_file() and folder.trials.is_dir():
            raise RunNotFoundError(f"{folder.journal} is missing, but must be there; restore it from a copy or start a new run")
    with RunLock(folder) as lock, noted_signals() as signals, _state_kept(folder):
        if lock.taken_over_from is not None:
            gone = lock.taken_over_from
            _say(f"taking over from process {gone.pid} on {gone.host}, which has ended")
        _note(folder, "run_resumed")
        if record.plan is not None and record.plan.elsewhere is None:
            _compare_machine(folder)
        if record.plan is None:
            _prepare(folder, signals)
        _work(folder, signals)
    return folder


def _compare_machine(folder: RunFolder) -> None:
    """Say so where the run was planned on another machine: its predictions are of that one, what is measured from now on of this one."""
    from hardware.profile import Profile

    profile = Profile.load(folder.hardware)
    changed = profile.differences()
    if changed:
        _say(f"planned for {profile.described}, which is not this machine: {', '.join(changed)}; its throughput is simulated from now on")


def resume_command(folder: RunFolder) -> str:
    """The command that goes on with a run."""
    return f"grow resume {shlex.quote(reference(folder))}"


def reference(folder: RunFolder) -> str:
    """What names the run in a command: its name in the default runs folder, else its path."""
    return folder.name if folder.path.parent == Path("runs") else str(folder.path)


# Preparing


def _prepare(folder: RunFolder, signals: Signals) -> None:
    process = spawn("search.prepare", [str(folder.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        code = wait(process, signals)
        if code != 0:
            raise ChildError(code)
        write_json(folder.record, {**read_json(folder.record), "plan": json.loads(output.read())})
    RunRecord.read(folder)
    _note(folder, "run_prepared")


# Working


def _work(folder: RunFolder, signals: Signals) -> None:
    from search.storage import open_study, pareto, read_trials, repair

    options, record = Options.read(folder), RunRecord.read(folder)
    assert record.plan is not None
    lost = repair(folder.journal)
    if lost:
        _say(f"the journal ended in a torn line of {lost} bytes, which is lost; nothing else is")
    study = open_study(folder.journal, record.run)
    with open_progress(options.trials) as view:
        _Search(folder, options, record, study, signals, view).run()
        members = pareto(read_trials(folder.journal))
        timed = [] if record.plan.elsewhere is not None else sorted({0, DATA_PARALLEL, *members})
        _measure(folder, timed, members, signals, view)
    _set_state(folder, "complete")


def _measure(folder: RunFolder, timed: Sequence[int], tested: Sequence[int], signals: Signals, view: Progress) -> None:
    """Time final networks alone on the devices, and read the test accuracy of some, once."""
    time_them = [n for n in timed if folder.trial(n).checkpoint.is_dir() and not folder.trial(n).measured.exists()]
    test_them = [n for n in tested if folder.trial(n).checkpoint.is_dir() and not folder.trial(n).test.exists()]
    if not time_them and not test_them:
        return
    numbers = ", ".join(map(str, sorted({*time_them, *test_them})))
    view.say(f"measuring trials {numbers} on the devices" if time_them else f"reading the test accuracy of trials {numbers}")
    arguments = [str(folder.path), "--time", *map(str, time_them), "--test", *map(str, test_them)]
    with view.aside():
        code = wait(spawn("search.measure", arguments, stdout=subprocess.DEVNULL), signals)
    if code != 0:
        raise ChildError(code)
    _note(folder, "measured", timed=time_them, tested=test_them)


@dataclass(frozen=True)
class Job:
    """A worker at work on a trial."""

    number: int
    slot: Slot
    process: subprocess.Popen[bytes]


class _Search:
    """The loop: free devices are refilled at once, ended workers told at once, until the budget is met."""

    def __init__(
        self, folder: RunFolder, options: Options, record: RunRecord, study: optuna.Study, signals: Signals, view: Progress
    ) -> None:
        from search.space import from_json

        assert record.plan is not None
        plan = record.plan
        self.folder, self.options, self.record, self.plan, self.study = folder, options, record, plan, study
        self.signals, self.progress = signals, view
        self.ranges: Mapping[str, Range] = from_json(plan.ranges)
        # A clock that is the objective must not be disturbed by a neighbour, so then trials take turns.
        here = options.gpus if plan.elsewhere is None or plan.kind == "cpu" else 1
        self.slots = slots(plan.kind, here if options.throughput == "predicted" else 1)
        self.jobs: list[Job] = []
        self.ended: list[int] = []  # trained, not yet told
        self.failures: list[str] = []  # reasons of the search trials that failed since one succeeded

    def run(self) -> None:
        """Work until every trial of the budget is told."""
        for trial in self._trials():
            if not trial.state.is_finished() and self.folder.trial(trial.number).result.exists():
                self.ended.append(trial.number)  # trained before the parent was killed
        try:
            while self._step():
                self.signals.check()
                self.progress.tick(self.folder, [job.number for job in self.jobs], len(self._told()))
                time.sleep(POLL_S)
        finally:
            stop([job.process for job in self.jobs])

    def _step(self) -> bool:
        """Tell, then spawn; False when there is nothing left to do."""
        self._collect()
        for number in list(self.ended):
            if number == 0 or self._lowest_accuracy() is not None:
                self.ended.remove(number)
                self._tell(number)
        busy = {job.slot for job in self.jobs}
        for slot in self.slots:
            if slot not in busy and (upcoming := self._next()) is not None:
                self.jobs.append(self._spawn(upcoming, slot))
        return bool(self.jobs or self.ended)

    # Which trial is next

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _told(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state.is_finished()]

    def _next(self) -> int | None:
        """An unfinished trial that no worker is at, else a new one, else nothing."""
        taken = {job.number for job in self.jobs} | set(self.ended)
        trials = self._trials()
        for trial in trials:
            if not trial.state.is_finished() and trial.number not in taken:
                return trial.number
        number = len(trials)
        if number >= self.options.trials or (number > DATA_PARALLEL and self._lowest_accuracy() is None):
            return None  # what is feasible is known only when trial 0 is told
        return self._enter(number)

    def _enter(self, number: int) -> int:
        from search.storage import add_running, ask, seed_of

        role = _role(number)
        if role != "search":
            return add_running(self.study, role)
        guesses = self.plan.first_guesses
        position = number - DATA_PARALLEL - 1
        proposal = ask(
            self._trials(),
            self.ranges,
            self.plan.settings,
            seed=seed_of(self.options.seed, number),
            startup=max(4, self.options.trials // 4),
            guess=guesses[position] if position < len(guesses) else None,
        )
        return add_running(self.study, role, proposal)

    def _lowest_accuracy(self) -> float | None:
        """The accuracy that a trial must reach, None until trial 0 is told."""
        trials = self._trials()
        if not trials or not trials[0].state.is_finished():
            return None
        if trials[0].values is None:
            reason = trials[0].user_attrs.get("failure")
            raise RunError(f"trial 0, the dense baseline, failed: {reason}; the others cannot be judged without it, start a new run")
        return float(trials[0].values[0]) - self.options.tolerance / 100

    # Spawning

    def _spawn(self, number: int, slot: Slot) -> Job:
        files = self.folder.trial(number)
        files.path.mkdir(parents=True, exist_ok=True)
        if not files.recipe.exists():
            write_json(files.recipe, self._recipe(number).to_json())
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with open(files.log, "ab") as log:
            process = spawn(
                "search.worker",
                [str(files.recipe)],
                environment=threads | slot.environment(),
                core=slot.index if slot.kind == "cpu" else None,
                stdout=log,
                stderr=log,
            )
        _note(self.folder, "trial_started", number=number)
        self.progress.say(progress.started(number, _role(number), read_json(files.recipe)))
        return Job(number, slot, process)

    def _recipe(self, number: int) -> Recipe:
        from search.recipe import recipe
        from search.storage import values_of

        role = _role(number)
        if role == "search":
            values = values_of(self._trials()[number].params, self.ranges, self.plan.settings)
        else:
            values = dict(self.plan.settings) | baseline(role, self.options.gpus)
        data = self.plan.data
        return recipe(
            values
            | {
                "study": self.options.study,
                "study_sha256": self.record.study_sha256,
                "network": self.plan.network,
                "data_dir": data["folder"],
                "data_sha256": data["sha256"],
                "number": number,
                "role": role,
                "seed": self.options.seed,
                "device": self.plan.kind,
            }
        )

    # Telling

    def _collect(self) -> None:
        for job in [job for job in self.jobs if job.process.poll() is not None]:
            self.jobs.remove(job)
            self.ended.append(job.number)
            files = self.folder.trial(job.number)
            if not files.result.exists():
                if job.process.returncode == RunNotFoundError.exit_code:
                    raise RunNotFoundError(last_words(files.log))
                # The reason goes where a worker that can still speak puts it, so that telling needs one source only.
                write_json(files.result, {"state": "failed", "failure": ending(job.process.returncode, files.log)})

    def _tell(self, number: int) -> None:
        from search.storage import tell_complete, tell_failed

        files = self.folder.trial(number)
        result = read_json(files.result)
        if result["state"] == "failed":
            reason = str(result["failure"])
            tell_failed(self.study, number, reason)
            self._failed(number, reason)
        else:
            accuracy = _number(result, "accuracy")
            lowest = accuracy - self.options.tolerance / 100 if number == 0 else self._lowest_accuracy()
            assert lowest is not None
            if number == 0:
                self._fix_reference(lowest)
            tell_complete(self.study, number, accuracy, self._throughput(number, result), lowest)
            if number > DATA_PARALLEL:
                self.failures.clear()
            self.progress.say(progress.finished(number, result, feasible=accuracy >= lowest))
        _note(self.folder, "trial_told", number=number, state=result["state"])

    def _fix_reference(self, lowest_accuracy: float) -> None:
        """Hypervolumes are reckoned from the lowest accuracy within the tolerance and from no throughput, whatever the run becomes."""
        record = read_json(self.folder.record)
        if record.get("reference") is None:
            write_json(self.folder.record, {**record, "reference": [lowest_accuracy, 0.0]})

    def _throughput(self, number: int, result: Mapping[str, object]) -> float:
        if self.options.throughput == "predicted":
            return _number(result, "predicted_samples_per_s")
        _measure(self.folder, [number], [], self.signals, self.progress)
        return _number(read_json(self.folder.trial(number).measured), "samples_per_s")

    def _failed(self, number: int, reason: str) -> None:
        self.progress.say(progress.failed(number, reason))
        if number == 0:
            self._lowest_accuracy()
        if number > DATA_PARALLEL:
            self.failures.append(reason)
        if len(self.failures) >= FAILURES_IN_A_ROW:
            raise RunError(f"{len(self.failures)} trials failed one after the other, the first one: {self.failures[0]}")


def baseline(role: TrialRole, devices: int) -> dict[str, object]:
    """What makes a recipe the dense start network on one device, or data-parallel on all; on one device the two are the same."""
    used = devices if role == "baseline_data_parallel" else 1
    return {
        "initial": "dense",
        "density": 1.0,
        "drop_fraction": 0.0,
        "price": 0.0,
        "imbalance": 0.0,
        "devices": used,
        "strategy": "data" if used > 1 else "single",
    }


def _role(number: int) -> TrialRole:
    return "baseline_dense" if number == 0 else "baseline_data_parallel" if number == DATA_PARALLEL else "search"


def _number(record: Mapping[str, object], name: str) -> float:
    value = record[name]
    assert isinstance(value, int | float)
    return value


# What the run's own files say


@contextmanager
def _state_kept(folder: RunFolder) -> Iterator[None]:
    """Keep `run.json`'s state true to what happens inside."""
    try:
        _set_state(folder, "running")
        yield
    except StoppedError as error:
        _set_state(folder, "interrupted")
        raise StoppedError(error.exit_code - 128, f"stopped; continue with: {resume_command(folder)}") from error
    except KeyboardInterrupt:
        _set_state(folder, "interrupted")
        raise
    except BaseException as error:
        _set_state(folder, "failed", " ".join(str(error).split()))
        raise


def _set_state(folder: RunFolder, state: str, reason: str | None = None) -> None:
    if not folder.record.exists():
        return  # the run could not begin, and its folder has been removed
    record = read_json(folder.record)
    if (record["state"], record["reason"]) != (state, reason):
        write_json(folder.record, {**record, "state": state, "reason": reason})
        if state != "running":
            _note(folder, f"run_{state}")


def _note(folder: RunFolder, event: str, **details: object) -> None:
    append_line(folder.events, {"time": _now(), "event": event, **details}, sync=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("growprune", "torch", "optuna", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _say(text: str) -> None:
    sys.stderr.write(f"grow: {text}\n")

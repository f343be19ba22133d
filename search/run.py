"""The parent of a run: it asks the sampler, spawns workers, and tells the study how they ended. It never needs torch.

    create the folder -> prepare (child: data, network, profile) -> trials (children, one a device) -> measure (child) -> document

Every step leaves files from which the next can start, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from search import progress
from search.changes import accept, changes, record_code, versions
from search.early_stopping import Peer, Reached, Yardstick, reached, write_yardstick
from search.errors import ChildError, ConfigurationError, RunError, RunNotFoundError, StoppedError, StorageError, full
from search.hypervolume import hypervolume
from search.nursery import Nursery
from search.options import Options, RunRecord
from search.ownership import Ownership, Sole, exclusively, of_trial
from search.process import (
    POLL_S,
    THREADS,
    Child,
    Signals,
    Slot,
    ending,
    last_words,
    noted_signals,
    out_of_memory_kills,
    said,
    slots,
    spawn,
    stop,
    wait,
    was_killed,
    was_stopped,
)
from search.progress import Progress, open_progress
from search.quiet import Hold, devices_of
from search.rundir import (
    RunFolder,
    RunLock,
    TrialFolder,
    append_line,
    create_run_folder,
    missing_folders,
    read_json,
    read_json_if_valid,
    removed_on_error,
    write_json,
)
from search.storage_url import StorageUrl

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from search.options import Plan
    from search.recipe import Recipe, TrialRole
    from search.space import Range
    from search.storage import Proposal

STOPS_IN_A_ROW = 10
"""Times that a trial's worker may be ended by others before its first or its next checkpoint; then the trial has failed."""

FAILURES_IN_A_ROW = 5
"""Search trials that may fail one after the other before the run is given up."""

DATA_PARALLEL = 1
"""Number of the data-parallel baseline; the dense one is trial 0."""


def start(options: Options, study_sha256: str | None, runs_dir: Path, name: str | None, storage: StorageUrl | None = None) -> RunFolder:
    """Begin a new run and work on it to the end of its budget; a run that cannot begin leaves nothing behind.

    storage: with the password that ``options`` does without.
    """
    if storage is not None:
        storage.check()  # refused before anything is made
    record = RunRecord(
        run="",
        created_at=_now(),
        versions=versions(),
        study_sha256=study_sha256,
        options=asdict(options),
        startup=startup_of(options.trials),
    )

    def fill(folder: RunFolder, name: str) -> None:
        options.write(folder)
        record_code(folder, options)
        shared = None if storage is None else f"{name}-{uuid.uuid4().hex[:8]}"  # others may have runs of this name there
        replace(record, run=name, study_name=shared).write(folder)

    made = missing_folders(runs_dir)
    unfit = (ChildError, ValueError, OSError)
    with removed_on_error(None, unfit, made):
        folder = create_run_folder(runs_dir, name, Path(options.study.rpartition(":")[2]).name, fill)
    with _owned(folder, storage) as ownership, noted_signals() as signals, _state_kept(folder, ownership), Nursery(signals) as nursery:
        _note(folder, "run_created")
        with removed_on_error(folder, unfit, made):
            _prepare(folder, signals, nursery, ownership)
        _work(folder, signals, nursery, ownership)
    return folder


def startup_of(trials: int) -> int:
    """Trials before the sampler's model is used, in a run with this budget at its beginning."""
    return max(4, trials // 4)


def resume(
    folder: RunFolder, *, add: int = 0, allow_change: bool = False, storage: StorageUrl | None = None, take_over: bool = False
) -> RunFolder:
    """Go on with a run until its budget is met, after adding so many trials to it. One whose budget is met already is left as it is.

    A run whose trials are in a storage is joined, where others work on it. storage: its URL, where the run's own lacks a password.
    take_over: its owner, which was on another host, has ended. ConfigurationError where study, code or configuration have changed, unless
    that is allowed; what changed is told on stderr.
    """
    record, options = RunRecord.read(folder), Options.read(folder)
    if add < 0:
        raise ConfigurationError(f"add is {add}, but must be at least 0; a budget that was given stays")
    if record.state == "complete" and add == 0:
        return folder
    if record.plan is not None:
        read_json(folder.hardware)
    with (
        _owned(folder, _storage_of(options, storage), take_over=take_over) as ownership,
        _agreed(folder, record, options, allow_change) as changed,
        noted_signals() as signals,
        _state_kept(folder, ownership),
        Nursery(signals) as nursery,
    ):
        _note(folder, "run_resumed")
        if changed:
            record = accept(folder, record, options)
            _note(folder, "change_allowed", changed=changed)
        if add:
            _raise_budget(folder, add)
        if record.plan is not None and record.plan.elsewhere is None:
            _compare_machine(folder)
        if record.plan is None:
            _prepare(folder, signals, nursery, ownership)
        _work(folder, signals, nursery, ownership)
    return folder


def _raise_budget(folder: RunFolder, add: int) -> None:
    with exclusively(folder):
        options = Options.read(folder)
        options = replace(options, trials=options.trials + add)
        options.write(folder)
    _note(folder, "budget_raised", trials=options.trials)
    _say(f"the budget is now {options.trials} trials")


def _storage_of(options: Options, given: StorageUrl | None) -> StorageUrl | None:
    """The storage of a run. ConfigurationError where one is given that the run does not have."""
    if options.storage is None:
        if given is not None:
            raise ConfigurationError(f"storage is {given}, but must not be given: the run keeps its trials in its own folder; leave it out")
        return None
    return StorageUrl(options.storage) if given is None else given


@contextmanager
def _owned(folder: RunFolder, storage: StorageUrl | None, *, take_over: bool = False) -> Iterator[Ownership]:
    """The right to work on a run: of this process alone, or as one of several on one storage."""
    if storage is not None:
        from search.shared import OUTAGES, Shared

        try:
            with Shared(folder, storage) as shared:
                yield shared
        except OUTAGES as error:
            raise RunError(
                f"the storage does not answer ({_cause(error)}); once it does, continue with: {resume_command(folder)}"
            ) from error
        return
    with RunLock(folder, take_over=take_over) as lock:
        if lock.taken_over_from is not None:
            gone = lock.taken_over_from
            _say(f"taking over from process {gone.pid} on {gone.host}, which has ended")
        yield Sole(folder, RunRecord.read(folder).run)


def _cause(error: BaseException) -> str:
    """What a driver said, in one line."""
    said = getattr(error.__cause__ or error, "orig", None) or error.__cause__ or error
    return " ".join(str(said).split())


@contextmanager
def _agreed(folder: RunFolder, record: RunRecord, options: Options, allowed: bool) -> Iterator[list[str]]:
    """What has changed since the run began, if anything; ConfigurationError unless that is allowed, and nothing is done then."""
    changed = changes(folder, record, options)
    if changed and not allowed:
        sys.stderr.write("\n".join([f"changed since run {record.run} began:", *changed]) + "\n")
        raise ConfigurationError(f"run {record.run!r} is not what it was, but must be; put back what changed, or add --allow-config-change")
    yield changed


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


def _prepare(folder: RunFolder, signals: Signals, nursery: Nursery, ownership: Ownership) -> None:
    """Prepare, or wait until another process has."""
    while not ownership.claim("preparing"):
        _pause(signals, ownership)
        if RunRecord.read(folder).plan is not None:
            return
    _check_ended(wait(nursery.start("search.prepare", [str(folder.path)]), signals), "preparing", folder)
    _note(folder, "run_prepared")


def _check_ended(code: int, what: str, folder: RunFolder) -> None:
    """ChildError for a child that has said why it failed, RunError for one that others ended."""
    if was_stopped(code):
        raise RunError(f"{what} was stopped from outside; continue with: {resume_command(folder)}")
    if code != 0:
        raise ChildError(code)


# Working


def _pause(signals: Signals, ownership: Ownership) -> None:
    signals.check()
    time.sleep(ownership.poll_s)


def _work(folder: RunFolder, signals: Signals, nursery: Nursery, ownership: Ownership) -> None:
    options, record = Options.read(folder), RunRecord.read(folder)
    assert record.plan is not None
    study, lost = ownership.open()
    if lost is not None:
        _say(lost)
        _note(folder, "journal_lost", what=lost)
    with open_progress(options.trials) as view:
        _Search(folder, options, record, ownership, study, signals, view, nursery).run()
        while not ownership.claim("closing"):
            _pause(signals, ownership)
            if RunRecord.read(folder).state == "complete":
                return
        ownership.changed()  # one that was killed may have told the storage alone
        _close(folder, record.plan, signals, view, nursery)


def _close(folder: RunFolder, plan: Plan, signals: Signals, view: Progress, nursery: Nursery) -> None:
    """Measure baselines and front, read the test accuracy of the front, and let the run be complete."""
    from search.storage import pareto, read_trials

    members = pareto(read_trials(folder.journal))
    timed = [] if plan.elsewhere is not None else sorted({0, DATA_PARALLEL, *members})
    devices = devices_of(slots(plan.kind, Options.read(folder).gpus))
    _measure(folder, timed, members, devices, signals, view, nursery)
    _set_state(folder, "complete")


@contextmanager
def _alone_on(devices: Sequence[str], signals: Signals, view: Progress) -> Iterator[None]:
    """Wait until nothing trains on some devices, and keep it so."""
    hold = Hold(devices, alone=True)
    try:
        if not hold.ready():
            view.say(f"waiting until nothing else trains on {', '.join(devices)}")
        while not hold.ready():
            signals.check()
            time.sleep(POLL_S)
        yield
    finally:
        hold.release()


def _measure(
    folder: RunFolder,
    timed: Sequence[int],
    tested: Sequence[int],
    devices: Sequence[str],
    signals: Signals,
    view: Progress,
    nursery: Nursery,
) -> None:
    """Time final networks alone on the devices, and read the test accuracy of some, once."""
    time_them = [n for n in timed if folder.trial(n).checkpoint.is_dir() and not folder.trial(n).measured.exists()]
    test_them = [n for n in tested if folder.trial(n).checkpoint.is_dir() and not folder.trial(n).test.exists()]
    if not time_them and not test_them:
        return
    numbers = ", ".join(map(str, sorted({*time_them, *test_them})))
    view.say(f"measuring trials {numbers} on the devices" if time_them else f"reading the test accuracy of trials {numbers}")
    arguments = [str(folder.path), "--time", *map(str, time_them), "--test", *map(str, test_them)]
    with _alone_on(devices if time_them else [], signals, view), view.aside():
        code = wait(nursery.start("search.measure", arguments), signals)
    _check_ended(code, "measuring", folder)
    _note(folder, "measured", timed=time_them, tested=test_them)


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


class _Search:
    """The loop: free devices are refilled at once, ended workers told at once, until the budget is met."""

    def __init__(
        self,
        folder: RunFolder,
        options: Options,
        record: RunRecord,
        ownership: Ownership,
        study: optuna.Study,
        signals: Signals,
        view: Progress,
        nursery: Nursery,
    ) -> None:
        from search.space import from_json

        assert record.plan is not None
        plan = record.plan
        self.folder, self.options, self.record, self.plan = folder, options, record, plan
        self.ownership, self.study = ownership, study
        self.signals, self.progress, self.nursery = signals, view, nursery
        self.ranges: Mapping[str, Range] = from_json(plan.ranges)
        self.slots = slots_of(options, plan)
        self.jobs: list[Job] = []
        self.ended: list[int] = []  # trained, not yet told
        self.waiting: dict[Slot, Hold] = {}  # for devices that others are at, by slot
        self.silent_since: float | None = None  # when the storage did not answer, and has not since
        self.stops: dict[int, int] = {}  # how often a trial's worker was ended by others since its last checkpoint
        self.failures: list[str] = []  # reasons of the search trials that failed since one succeeded

    def run(self) -> None:
        """Work until every trial of the budget is told."""
        self._tell_again()
        try:
            while self._patient_step():
                self.progress.tick(self.folder, [job.number for job in self.jobs], len(self._told()))
                _pause(self.signals, self.ownership)
        finally:
            stop([job.process for job in self.jobs])
            for hold in (*self.waiting.values(), *(job.hold for job in self.jobs)):
                hold.release()

    def _tell_again(self) -> None:
        """Tell a journal that was made anew what the one before was told."""
        from search.restore import told

        self._look()
        trials = self._trials()
        if self.ownership.shared or any(trial.state.is_finished() for trial in trials):
            return
        for number in told(self.folder):
            if number < len(trials):
                self._enter_outcome(number, read_json(self.folder.trial(number).result))
                self._look()

    def _patient_step(self) -> bool:
        """A step; where the storage does not answer, the same again later, for the length of a lease."""
        try:
            goes_on = self._step()
        except self.ownership.outages as error:
            now = time.monotonic()
            if self.silent_since is None:
                self.silent_since = now
                self.progress.say(f"the storage does not answer, and is asked again for {self.options.lease_s:g} s ({_cause(error)})")
            if now - self.silent_since > self.options.lease_s:
                raise
            return True
        self.silent_since = None
        return goes_on

    def _step(self) -> bool:
        """Tell, then spawn; False when there is nothing left to do."""
        self._look()
        self._let_go()
        self._collect()
        self._find_results()
        at_clock = {job.number for job in self.jobs}
        for number in list(self.ended):
            if number not in at_clock and not self._untimed(number) and (number == 0 or self._lowest_accuracy() is not None):
                self._tell(number)
                self.ended.remove(number)
        for slot in self.slots:
            if slot not in {job.slot for job in self.jobs}:
                self._refill(slot)
        return bool(self.jobs or self.ended or len(self._told()) < max(self._budget(), len(self._trials())))

    def _refill(self, slot: Slot) -> None:
        """Time on a free slot what was trained, else train there what is next; later, where others are at its devices."""
        at_clock = {job.number for job in self.jobs}
        untimed = next((number for number in self.ended if self._untimed(number) and number not in at_clock), None)
        hold = self.waiting.pop(slot, None)
        if hold is None or hold.alone != (untimed is not None):
            if hold is not None:
                hold.release()
            hold = Hold(devices_of([slot]), alone=untimed is not None)
        if not hold.ready():
            self.waiting[slot] = hold
            return
        with ExitStack() as given_back:
            given_back.callback(hold.release)
            if untimed is not None:
                self.jobs.append(self._clock(untimed, slot, hold))
            elif (upcoming := self._next()) is not None:
                self.jobs.append(self._spawn(upcoming, slot, hold))
            else:
                return
            given_back.pop_all()  # the job's now

    def _untimed(self, number: int) -> bool:
        """Whether a trained trial has yet to be timed before it can be told."""
        if self.options.throughput == "predicted":
            return False
        files = self.folder.trial(number)
        return not files.measured.exists() and read_json(files.result)["state"] == "complete"

    def _clock(self, number: int, slot: Slot, hold: Hold) -> Job:
        """Time a trained network on the devices of a slot."""
        files = self.folder.trial(number)
        arguments = [str(self.folder.path), "--time", str(number), "--test"]
        cores = slot.indices if slot.kind == "cpu" and self.options.gpus_per_trial is not None else ()
        with open(files.log, "ab") as log:
            before = Before(self._checkpoint(number), out_of_memory_kills(), log.tell())
            process = self.nursery.start("search.measure", arguments, environment=slot.environment(whole=True), cores=cores, log=log)
        _note(self.folder, "measuring", number=number)
        self.progress.say(f"measuring trial {number} on the devices")
        return Job(number, slot, process, before, hold, timing=True)

    def _find_results(self) -> None:
        """Trials that were trained before their parent was killed, here or elsewhere."""
        for trial in self._open():
            result = self.folder.trial(trial.number).result
            if not result.exists() or not self._claim(trial.number):
                continue
            if read_json_if_valid(result) is None:
                self.progress.say(f"{result} is damaged and not used; trial {trial.number} goes on from its last checkpoint")
                result.unlink()
            else:
                self.ended.append(trial.number)

    # Whose a trial is

    def _claim(self, number: int) -> bool:
        return self.ownership.claim(of_trial(number))

    def _let_go(self) -> None:
        """Stop what another process has taken over or told, without telling."""
        mine = self.ownership.held({of_trial(number) for number in (*(job.number for job in self.jobs), *self.ended)})
        told = {trial.number for trial in self._told()}
        lost = [job for job in self.jobs if of_trial(job.number) not in mine or job.number in told]
        for job in lost:
            self.progress.say(f"trial {job.number} has been taken over by another process, and is stopped here")
            _note(self.folder, "trial_lost", number=job.number)
            self.jobs.remove(job)
        stop([job.process for job in lost])
        for job in lost:
            job.hold.release()
        self.ended = [number for number in self.ended if of_trial(number) in mine and number not in told]

    # Which trial is next

    def _look(self) -> None:
        """See what has been told and entered, here and elsewhere."""
        self._seen = self.study.get_trials(deepcopy=False)

    def _trials(self) -> list[FrozenTrial]:
        return self._seen

    def _changed(self) -> None:
        """What this process has just told or entered is to be seen, here and by those who look at the run."""
        self.ownership.changed()
        self._look()

    def _budget(self) -> int:
        """The trials of the run, which another process may have added to."""
        return Options.read(self.folder).trials if self.ownership.shared else self.options.trials

    def _open(self) -> list[FrozenTrial]:
        """Unfinished trials that this process is not at."""
        taken = {job.number for job in self.jobs} | set(self.ended)
        return [trial for trial in self._trials() if not trial.state.is_finished() and trial.number not in taken]

    def _told(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state.is_finished()]

    def _next(self) -> int | None:
        """An unfinished trial that nobody is at, else a new one, else nothing."""
        for trial in self._open():
            if self._claim(trial.number):
                return trial.number
        number = len(self._trials())
        if number >= self._budget() or (number > DATA_PARALLEL and self._lowest_accuracy() is None):
            return None  # what is feasible is known only when trial 0 is told
        if not self._claim(number):
            return None  # another process is drawing it
        self._look()  # one that has died may have entered it
        return number if len(self._trials()) > number else self._enter(number)

    def _enter(self, number: int) -> int | None:
        from search.storage import add_running, tell_failed

        entered = add_running(self.study, _role(number), self._proposal(number))
        if entered != number:  # this process slept for longer than its lease in between
            tell_failed(self.study, entered, f"drawn as trial {number}, which another process has entered")
        self._changed()
        return number if entered == number else None

    def _proposal(self, number: int) -> Proposal | None:
        """The parameters of a new trial; None for a baseline."""
        from search.storage import ask, seed_of

        if _role(number) != "search":
            return None
        guesses = self.plan.first_guesses
        position = number - DATA_PARALLEL - 1
        return ask(
            self._trials(),
            self.ranges,
            self.plan.settings,
            seed=seed_of(self.options.seed, number),
            startup=self.record.startup or startup_of(self.options.trials),
            choice=self.options.sampler,
            guess=guesses[position] if position < len(guesses) else None,
        )

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

    def _spawn(self, number: int, slot: Slot, hold: Hold) -> Job:
        from search.restore import keep

        files = self.folder.trial(number)
        files.path.mkdir(parents=True, exist_ok=True)
        keep(files, self._trials()[number])
        if read_json_if_valid(files.recipe) is None:  # it follows from the journal
            write_json(files.recipe, self._recipe(number).to_json())
        if self.options.early_stopping:  # a baseline is judged by none, so that it is trained to its end
            write_yardstick(files, self._yardstick(self._told() if number > DATA_PARALLEL else []))
        with open(files.log, "ab") as log:
            before = Before(self._checkpoint(number), out_of_memory_kills(), log.tell())
            process = self._child(files, slot, log)
        _note(self.folder, "trial_started", number=number)
        self.progress.say(progress.started(number, _role(number), read_json(files.recipe), again=bool(before.checkpoint)))
        return Job(number, slot, process, before, hold)

    def _yardstick(self, told: Sequence[FrozenTrial]) -> Yardstick:
        """What a trial is judged by: the trials that have been told, as far as they were trained to their end."""
        from optuna.trial import TrialState

        peers = (self._peer(trial) for trial in told if trial.state == TrialState.COMPLETE)
        known = tuple(peer for peer in peers if peer is not None)
        return Yardstick(known, self._lowest_accuracy() or 0.0, int(str(self.plan.data["validation"])))

    def _peer(self, trial: FrozenTrial) -> Peer | None:
        """A trial that was trained to its end; None where its files are damaged."""
        from search.storage import feasible

        files = self.folder.trial(trial.number)
        result, recipe = read_json_if_valid(files.result), read_json_if_valid(files.recipe)
        if result is None or recipe is None:
            return None
        ended = Reached(_number(result, "accuracy"), _number(result, "predicted_samples_per_s"))
        return Peer(trial.number, str(recipe["initial"]), feasible(trial), reached(files), ended)

    def _child(self, files: TrialFolder, slot: Slot, log: IO[bytes]) -> Child:
        if slot.kind == "cpu":
            return self.nursery.start("search.worker", [str(files.recipe)], environment=slot.environment(), cores=[slot.index], log=log)
        # Where training takes a GPU, a fresh interpreter costs little, and nothing of CUDA's can be inherited.
        environment = slot.environment() | {name: "1" for name in THREADS}
        return spawn("search.worker", [str(files.recipe)], environment=environment, stdout=log, stderr=log)

    def _recipe(self, number: int) -> Recipe:
        from search.recipe import recipe
        from search.storage import values_of

        role = _role(number)
        if role == "search":
            values = values_of(self._trials()[number].params, self.ranges, self.plan.settings)
        else:
            values = dict(self.plan.settings) | baseline(role, self.options.devices_per_trial)
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
        for job in list(self.jobs):
            code = job.process.poll()
            if code is None:
                continue
            self.jobs.remove(job)
            job.hold.release()
            files = self.folder.trial(job.number)
            if job.timing:
                self._timed(job, code)
                continue
            for line in said(files.log, job.before.logged_bytes):
                self.progress.say(f"trial {job.number}: {line}")
            if files.result.exists():
                self.ended.append(job.number)
            elif code == RunNotFoundError.exit_code:
                raise RunNotFoundError(last_words(files.log))
            elif code == StorageError.exit_code:
                raise RunError(last_words(files.log))
            elif not self._goes_on(job, code):
                # The reason goes where a worker that can still speak puts it, so that telling needs one source only.
                state = "infeasible" if _ran_out_of_memory(job, code) else "failed"
                write_json(files.result, {"state": state, "failure": self._reason(job, code)})
                self.ended.append(job.number)

    def _timed(self, job: Job, code: int) -> None:
        """What a network was timed at is told next; where its process was ended by others, it is timed again."""
        if code != 0 and not was_stopped(code):
            raise RunError(f"measuring trial {job.number} failed: {last_words(self.folder.trial(job.number).log)}")
        if code == 0:
            _note(self.folder, "measured", timed=[job.number], tested=[])
            return
        self.stops[job.number] = self.stops.get(job.number, 0) + 1
        if self.stops[job.number] >= STOPS_IN_A_ROW:
            raise RunError(f"measuring trial {job.number}: {ending(code, self.folder.trial(job.number).log)}, {STOPS_IN_A_ROW} times")

    def _goes_on(self, job: Job, code: int) -> bool:
        """Whether the trial of a worker that was ended by others continues: always, unless memory ran out or it does not get on."""
        if not was_stopped(code) or _ran_out_of_memory(job, code):
            return False
        stops = self.stops[job.number] = self.stops.get(job.number, 0) + 1 if job.before.checkpoint == self._checkpoint(job.number) else 1
        if stops >= STOPS_IN_A_ROW:
            return False
        self.progress.say(f"trial {job.number}: {ending(code, self.folder.trial(job.number).log)}, and goes on from its last checkpoint")
        _note(self.folder, "trial_interrupted", number=job.number)
        return True

    def _reason(self, job: Job, code: int) -> str:
        reason = ending(code, self.folder.trial(job.number).log)
        if not was_stopped(code):
            return reason
        if _ran_out_of_memory(job, code):
            return f"{reason} because memory ran out"
        return f"{reason}, {STOPS_IN_A_ROW} times without a new checkpoint"

    def _checkpoint(self, number: int) -> str:
        """Name of the last checkpoint of a trial, empty before the first."""
        return max((path.name for path in self.folder.trial(number).checkpoint.glob("[0-9]*[0-9]")), default="")

    def _tell(self, number: int) -> None:
        """Enter the outcome of a trial, unless it has become another process's to tell."""
        if not self.ownership.held({of_trial(number)}):
            return
        result = read_json(self.folder.trial(number).result)
        try:
            self._enter_outcome(number, result)
        except (ValueError, RuntimeError):  # Optuna's for a trial that has ended
            self._look()
            if not self._trials()[number].state.is_finished():
                raise
            self.progress.say(f"trial {number} has been told by another process already")
            return
        self._changed()
        _note(self.folder, "trial_told", number=number, state=result["state"], hypervolume=self._hypervolume())
        self._say_outcome(number, result)

    def _say_outcome(self, number: int, result: Mapping[str, object]) -> None:
        """Tell the user. RunError where the run cannot go on after this."""
        from search.storage import broken

        if result["state"] == "complete":
            self.progress.say(progress.finished(number, result, broken(self._trials()[number])))
        else:
            self.progress.say(progress.ended(number, str(result["state"]), str(result["failure"])))
        if number == 0:
            self._lowest_accuracy()
        if number > DATA_PARALLEL and result["state"] == "complete":
            self.failures.clear()
        if number > DATA_PARALLEL and result["state"] == "failed":
            self.failures.append(str(result["failure"]))
        if len(self.failures) >= FAILURES_IN_A_ROW:
            raise RunError(f"{len(self.failures)} trials failed one after the other, the first one: {self.failures[0]}")

    def _enter_outcome(self, number: int, result: Mapping[str, object]) -> None:
        """Enter how a trial ended into the study."""
        from search.storage import tell_complete, tell_failed, tell_infeasible, tell_stopped_early

        match result["state"]:
            case "failed":
                tell_failed(self.study, number, str(result["failure"]))
            case "infeasible":
                tell_infeasible(self.study, number, str(result["failure"]))
            case "stopped_early":
                tell_stopped_early(self.study, number, str(result["failure"]))
            case _:
                accuracy = _number(result, "accuracy")
                lowest = accuracy - self.options.tolerance / 100 if number == 0 else self._lowest_accuracy()
                assert lowest is not None
                if number == 0:
                    self._fix_reference(lowest)
                tell_complete(self.study, number, accuracy, self._throughput(number, result), lowest, _memory(result))

    def _hypervolume(self) -> float | None:
        """What the trials told so far cover, samples/s; None before trial 0."""
        from search.results import feasible_points

        reference = RunRecord.read(self.folder).reference
        return None if reference is None else hypervolume(feasible_points(self._trials()), reference)

    def _fix_reference(self, lowest_accuracy: float) -> None:
        """Hypervolumes are reckoned from the lowest accuracy within the tolerance and from no throughput, whatever the run becomes."""
        with exclusively(self.folder):
            record = read_json(self.folder.record)
            if record.get("reference") is None:
                write_json(self.folder.record, {**record, "reference": [lowest_accuracy, 0.0]})

    def _throughput(self, number: int, result: Mapping[str, object]) -> float:
        if self.options.throughput == "predicted":
            return _number(result, "predicted_samples_per_s")
        return _number(read_json(self.folder.trial(number).measured), "samples_per_s")


def slots_of(options: Options, plan: Plan) -> list[Slot]:
    """What trials work on side by side. Without --gpus-per-trial, all devices are one slot where the clock is the objective."""
    here = options.gpus if plan.elsewhere is None or plan.kind == "cpu" else 1
    if options.gpus_per_trial is not None:
        return slots(plan.kind, here, min(here, options.gpus_per_trial))
    return slots(plan.kind, here, 1 if options.throughput == "predicted" else here)


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


def _ran_out_of_memory(job: Job, code: int) -> bool:
    """Whether the system ended a worker to have memory again."""
    return was_killed(code) and out_of_memory_kills() > job.before.out_of_memory_kills


def _memory(result: Mapping[str, object]) -> float | None:
    """The predicted share of a device's memory; None in a result that an earlier version wrote."""
    return _number(result, "memory_bytes") / _number(result, "device_memory_bytes") if "memory_bytes" in result else None


def _number(record: Mapping[str, object], name: str) -> float:
    value = record[name]
    assert isinstance(value, int | float)
    return value


# What the run's own files say


@contextmanager
def _state_kept(folder: RunFolder, ownership: Ownership) -> Iterator[None]:
    """Keep `run.json`'s state true to what happens inside."""

    def end(state: str, reason: str | None = None) -> None:
        if ownership.alone():  # while others work on it, the run does not end
            _set_state(folder, state, reason)

    try:
        _set_state(folder, "running")
        yield
    except StoppedError as error:
        end("interrupted")
        raise StoppedError(error.exit_code - 128, f"stopped; continue with: {resume_command(folder)}") from error
    except KeyboardInterrupt:
        end("interrupted")
        raise
    except OSError as error:
        if not full(error):
            end("failed", " ".join(str(error).split()))
            raise
        with suppress(OSError):
            end("interrupted")
        raise RunError(f"{error}: make room, and continue with: {resume_command(folder)}") from error
    except BaseException as error:
        with suppress(OSError):
            end("failed", " ".join(str(error).split()))
        raise


def _set_state(folder: RunFolder, state: str, reason: str | None = None) -> None:
    if not folder.record.exists():
        return  # the run could not begin, and its folder has been removed
    with exclusively(folder):
        record = read_json(folder.record)
        if (record["state"], record["reason"]) == (state, reason):
            return
        write_json(folder.record, {**record, "state": state, "reason": reason})
    if state != "running":
        _note(folder, f"run_{state}")


def _note(folder: RunFolder, event: str, **details: object) -> None:
    append_line(folder.events, {"time": _now(), "event": event, **details}, sync=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _say(text: str) -> None:
    sys.stderr.write(f"grow: {text}\n")

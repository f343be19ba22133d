"""The files of a run: where they lie, and how a run's folder is made and found.

RUN/
  config.toml      what the user asked for
  run.json         what the run is: its study, data, devices, and how it ended
  hardware.json    the profile that it was planned with, frozen at the start
  code.json        hashes of the code that it runs on
  study.journal    Optuna's
  events.jsonl     what happened to the run, in order
  run.lock         who works on it; owners/ and run.mutex where several processes do
  trials/NNNN/     entry.json, recipe.json, peers.json, metrics.jsonl, history.jsonl, checkpoint/, worker.log, result.json,
                   measured.json, test.json
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from search.errors import ConfigurationError, RunNotFoundError, suggestion
from search.files import sync_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial."""

    path: Path

    @property
    def entry(self) -> Path:
        """What the trial entered the journal with, from which that can be made anew."""
        return self.path / "entry.json"

    @property
    def recipe(self) -> Path:
        """What decides the trial."""
        return self.path / "recipe.json"

    @property
    def metrics(self) -> Path:
        """Loss, accuracy, density and rate while it trains."""
        return self.path / "metrics.jsonl"

    @property
    def history(self) -> Path:
        """One event for every decision that was carried out."""
        return self.path / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint."""
        return self.path / "checkpoint"

    @property
    def result(self) -> Path:
        """How the trial ended; its presence says that the worker is done."""
        return self.path / "result.json"

    @property
    def measured(self) -> Path:
        """Throughput by the clock."""
        return self.path / "measured.json"

    @property
    def test(self) -> Path:
        """Test accuracy, for members of the front."""
        return self.path / "test.json"

    @property
    def peers(self) -> Path:
        """What the trial is judged by while it trains; there where it may end early."""
        return self.path / "peers.json"

    @property
    def log(self) -> Path:
        """Stdout and stderr of the worker."""
        return self.path / "worker.log"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """What the user asked for."""
        return self.path / "config.toml"

    @property
    def record(self) -> Path:
        """What the run is and how it ended."""
        return self.path / "run.json"

    @property
    def hardware(self) -> Path:
        """The frozen profile."""
        return self.path / "hardware.json"

    @property
    def code(self) -> Path:
        """Hashes of the code that the run depends on."""
        return self.path / "code.json"

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / "study.journal"

    @property
    def events(self) -> Path:
        """What happened to the run."""
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Who works on the run."""
        return self.path / "run.lock"

    @property
    def owners(self) -> Path:
        """Folder of the processes that work on the run, where several do."""
        return self.path / "owners"

    @property
    def mutex(self) -> Path:
        """What one of several processes holds while it changes a file of the run's."""
        return self.path / "run.mutex"

    @property
    def trials(self) -> Path:
        """Folder of the trials, there once the first one has begun."""
        return self.path / "trials"

    def trial(self, number: int) -> TrialFolder:
        """The files of a trial."""
        return TrialFolder(self.trials / f"{number:04d}")


def check_name(name: str) -> None:
    """ConfigurationError unless ``name`` can be a run's name, which cannot lead out of the runs folder."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"name is {name!r}, but must be letters, digits, '.', '_' and '-', beginning with a letter or digit")


def create_run_folder(
    runs_dir: Path, name: str | None, stem: str, fill: Callable[[RunFolder, str], None] = lambda folder, name: None
) -> RunFolder:
    """Make the folder of a new run; without a name, ``stem`` and the next free number.

    fill: writes the first files, given a folder beside the final one and the name; then it is moved there. So whatever is killed at
    whatever point, there is a whole run of that name or none.
    """
    if name is not None:
        check_name(name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-") or "run"
    with _writing_to(runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
        for free in [name] if name is not None else (f"{stem}-{number}" for number in count(1)):
            if not (runs_dir / free).exists() and (made := _new_folder(runs_dir / free, fill)) is not None:
                return made
    raise ConfigurationError(_taken(runs_dir, name))


def check_new(runs_dir: Path, name: str | None) -> None:
    """ConfigurationError where `create_run_folder` would refuse. What is made to find out is taken away again."""
    import tempfile

    if name is not None:
        check_name(name)
    made = missing_folders(runs_dir)
    with _writing_to(runs_dir):
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=runs_dir):
                pass
        finally:
            _remove(made)
    if name is not None and (runs_dir / name).exists():
        raise ConfigurationError(_taken(runs_dir, name))


@contextmanager
def _writing_to(runs_dir: Path) -> Iterator[None]:
    """ConfigurationError where the folder of all runs cannot be made or written to."""
    try:
        yield
    except OSError as error:
        reason = "no folder" if isinstance(error, FileExistsError) else error.strerror or "not writable"
        raise ConfigurationError(
            f"runs_dir is {str(runs_dir)!r}, but must be a folder that can be written to ({reason}); choose another with --runs-dir"
        ) from error


def _taken(runs_dir: Path, name: str | None) -> str:
    return f"name is {name!r}, but must be new in {str(runs_dir)!r}; continue that run with `grow resume {name}` or choose another name"


def _new_folder(path: Path, fill: Callable[[RunFolder, str], None]) -> RunFolder | None:
    """The folder, with its first files; None where another process was quicker."""
    import shutil

    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # of a process of the same number that was killed
    beside.mkdir()
    try:
        fill(RunFolder(beside), path.name)
        beside.rename(path)  # which replaces nothing but an empty folder
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return None
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(path.parent)
    return RunFolder(path)


_PARTS = ("config.toml", "code.json", "study.journal", "trials")
"""What tells a run that has lost its record from a folder that never was one."""


def find_run(run: str, runs_dir: Path) -> RunFolder:
    """The run of that name in ``runs_dir``, or at that path; RunNotFoundError otherwise."""
    places = [runs_dir / run] if _NAME.fullmatch(run) else []
    for place in [*places, Path(run)]:
        if (place / "run.json").is_file():
            return RunFolder(place)
        if any((place / part).exists() for part in _PARTS):
            raise RunNotFoundError(f"run {run!r} is damaged: {place / 'run.json'} is missing, but must be there; start a new run")
    known = tuple(folder.name for folder in run_folders(runs_dir))
    remedy = suggestion(run, known) or "; `grow runs` lists them"
    raise RunNotFoundError(f"run is {run!r}, but must be the name of a run in {str(runs_dir)!r} or the path of one{remedy}")


def reference(folder: RunFolder) -> str:
    """What names the run in a command: its name in the default runs folder, else its path."""
    return folder.name if folder.path.parent == Path("runs") else str(folder.path)


def resume_command(folder: RunFolder) -> str:
    """The command that goes on with a run."""
    return f"grow resume {shlex.quote(reference(folder))}"


def show_command(folder: RunFolder) -> str:
    """The command that shows a run."""
    return f"grow show {shlex.quote(reference(folder))}"


def run_folders(runs_dir: Path) -> tuple[RunFolder, ...]:
    """All runs of a folder, by name."""
    if not runs_dir.is_dir():
        return ()
    return tuple(RunFolder(path) for path in sorted(runs_dir.iterdir()) if _NAME.fullmatch(path.name) and (path / "run.json").is_file())


@contextmanager
def removed_on_error(
    folder: RunFolder | None, kind: type[BaseException] | tuple[type[BaseException], ...], made: Sequence[Path] = ()
) -> Iterator[None]:
    """Leave nothing behind of a run that could not begin: its folder, and of the folders above it those that were ``made`` for it."""
    try:
        yield
    except kind:
        import shutil

        if folder is not None:
            shutil.rmtree(folder.path, ignore_errors=True)
        _remove(made)
        raise


def _remove(made: Sequence[Path]) -> None:
    """Take folders away, the innermost first, until one is not empty or not there."""
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


def missing_folders(path: Path) -> list[Path]:
    """Which of a folder and those above it do not exist yet, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]

"""The files of a run: where they lie, how they are written, and who owns them.

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

Whole files are replaced atomically; of a file of lines, a torn last line is all that a crash can damage, and readers skip it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, TypeAlias

from search.errors import ConfigurationError, RunLockedError, RunNotFoundError, suggestion

JsonObject: TypeAlias = dict[str, object]

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
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        for free in [name] if name is not None else (f"{stem}-{number}" for number in count(1)):
            if not (runs_dir / free).exists() and (made := _new_folder(runs_dir / free, fill)) is not None:
                return made
    except OSError as error:
        reason = "no folder" if isinstance(error, FileExistsError) else error.strerror or "not writable"
        raise ConfigurationError(
            f"runs_dir is {str(runs_dir)!r}, but must be a folder that can be written to ({reason}); choose another with --runs-dir"
        ) from error
    raise ConfigurationError(
        f"name is {name!r}, but must be new in {str(runs_dir)!r}; continue that run with `grow resume {name}` or choose another name"
    )


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
    _sync_folder(path.parent)
    return RunFolder(path)


def find_run(run: str, runs_dir: Path) -> RunFolder:
    """The run of that name in ``runs_dir``, or at that path; RunNotFoundError otherwise."""
    places = [runs_dir / run] if _NAME.fullmatch(run) else []
    for place in [*places, Path(run)]:
        if (place / "run.json").is_file():
            return RunFolder(place)
        if place.is_dir() and place != runs_dir and place.name not in (".", ".."):
            raise RunNotFoundError(f"run {run!r} is damaged: {place / 'run.json'} is missing, but must be there; start a new run")
    known = tuple(folder.name for folder in run_folders(runs_dir))
    remedy = suggestion(run, known) or "; `grow runs` lists them"
    raise RunNotFoundError(f"run is {run!r}, but must be the name of a run in {str(runs_dir)!r} or the path of one{remedy}")


def run_folders(runs_dir: Path) -> tuple[RunFolder, ...]:
    """All runs of a folder, by name."""
    if not runs_dir.is_dir():
        return ()
    return tuple(RunFolder(path) for path in sorted(runs_dir.iterdir()) if _NAME.fullmatch(path.name) and (path / "run.json").is_file())


# Whole files


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: readers see the old one or the new one, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Replace a JSON file at once. NaN and infinity, which are not JSON, are refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> JsonObject:
    """The object of a JSON file; RunNotFoundError when it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunNotFoundError(f"{path} is missing, but must be there; the run is damaged, start a new one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunNotFoundError(f"{path} is unreadable ({error}), but must be JSON; the run is damaged, start a new one") from error
    if not isinstance(data, dict):
        raise RunNotFoundError(f"{path} holds a {type(data).__name__}, but must hold an object; the run is damaged, start a new one")
    return data


def read_json_if_valid(path: Path) -> JsonObject | None:
    """The object of a JSON file, None when it is not there or not whole."""
    try:
        return read_json(path)
    except RunNotFoundError:
        return None


# Files of lines


def append_line(path: Path, record: Mapping[str, object], *, sync: bool = False) -> None:
    """Append one JSON object as a line, after cutting what a crash left of a torn one; one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cut_torn_line(path)
        file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())


def cut_torn_line(path: Path) -> int:
    """Cut a file of lines to its last whole line; returns how many bytes were lost."""
    with suppress(FileNotFoundError), open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0 or _byte_at(file.fileno(), size - 1) == b"\n":
            return 0
        end = size
        while end > 0 and _byte_at(file.fileno(), end - 1) != b"\n":
            end -= 1
        file.truncate(end)
        os.fsync(file.fileno())
        return size - end
    return 0


def _byte_at(descriptor: int, offset: int) -> bytes:
    return os.pread(descriptor, 1, offset)


def read_lines(path: Path) -> list[JsonObject]:
    """All whole lines of a file of JSON objects; none when the file is not there."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return list(_objects(lines))


def last_line(path: Path) -> JsonObject | None:
    """The last whole line of a file of JSON objects, without reading all of a long file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65536))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    return next(_objects(lines[::-1]), None)


def _objects(lines: list[bytes]) -> Iterator[JsonObject]:
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


# The owner


@dataclass(frozen=True)
class Owner:
    """A process, so that it cannot be mistaken for a later one of the same pid."""

    pid: int
    host: str
    boot_id: str
    started: int  # clock ticks since boot

    @classmethod
    def this_process(cls) -> Owner:
        """The process that runs this."""
        return cls(os.getpid(), socket.gethostname(), _boot_id(), _start_ticks(os.getpid()) or 0)

    @property
    def alive(self) -> bool:
        """Whether it still runs; another machine's process counts as alive, since it cannot be seen from here."""
        if self.host != socket.gethostname():
            return True
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.started


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name of the process may itself hold spaces and brackets
    return None if state == "Z" else int(rest[18])


def owner(folder: RunFolder) -> Owner | None:
    """The process that works on a run, dead or alive, if it has not let go; of several, one that is alive."""
    found = [_owner_in(path) for path in (folder.lock, *sorted(folder.owners.glob("*.json")))]
    known = [process for process in found if process is not None]
    return next((process for process in known if process.alive), known[0] if known else None)


def _owner_in(path: Path) -> Owner | None:
    data = read_json_if_valid(path)
    try:
        return Owner(**data) if data else None  # type: ignore[arg-type]  # a wrong one fails below
    except TypeError:
        return None


@contextmanager
def owner_noted(folder: RunFolder) -> Iterator[None]:
    """Let be seen that this process works on the run, as one of several."""
    _forget_the_dead(folder)
    mine = Owner.this_process()
    path = folder.owners / f"{mine.host}-{mine.pid}-{mine.started}.json"
    write_json(path, asdict(mine))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _forget_the_dead(folder)


def _forget_the_dead(folder: RunFolder) -> None:
    for path in folder.owners.glob("*.json"):
        process = _owner_in(path)
        if process is not None and not process.alive:
            path.unlink(missing_ok=True)


def locked(path: Path, *, wait: bool) -> IO[bytes]:
    """A file that is there, locked until it is closed. BlockingIOError where another process has it, which is not waited for.

    Opened for writing, though nothing is written: on NFS, Linux makes a POSIX lock of flock's, which is refused to who only reads.
    """
    with ExitStack() as closed_on_error:
        file = closed_on_error.enter_context(open(path, "r+b"))
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        closed_on_error.pop_all()
        return file


class RunLock:
    """The right to work on a run: a kernel lock, which dies with its process, on a file that says whose it is."""

    def __init__(self, folder: RunFolder, *, take_over: bool = False) -> None:
        """RunLockedError where another process has it: also one on another host, of which only the user can say that it has ended.

        take_over: the user says so.
        """
        self._descriptor: int | None = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        self.taken_over_from: Owner | None = None
        before = owner(folder)
        unseen = before is not None and before.host != socket.gethostname()
        if not self._lock() or (before is not None and before.alive and not (unseen and take_over)):
            self._close()
            held_by = f"process {before.pid} on {before.host}" if before else "another process"
            remedy = "wait for it or stop it" + ("; if it is known to have ended, resume with --take-over" if unseen else "")
            raise RunLockedError(f"run {folder.name!r} belongs to {held_by}, but must have one owner; {remedy}")
        self.taken_over_from = before
        self._write(json.dumps(asdict(Owner.this_process())).encode())

    def _lock(self) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write(self, content: bytes) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def release(self) -> None:
        """Let go. The file stays, empty: removing it would let two processes lock two files of one name."""
        if self._descriptor is not None:
            self._write(b"")
            self._close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


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
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def missing_folders(path: Path) -> list[Path]:
    """Which of a folder and those above it do not exist yet, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]

"""How the files of a run are written and read.

Whole files are replaced atomically; of a file of lines, a torn last line is all that a crash can damage, and readers skip it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TypeAlias

from search.errors import RunNotFoundError

JsonObject: TypeAlias = dict[str, object]


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
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Let what a folder lists outlast a power failure."""
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


def number_in(record: Mapping[str, object], name: str) -> float:
    """A field of a JSON object that is a number, by our own hand."""
    value = record[name]
    assert isinstance(value, int | float)
    return value


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
    return next(last_lines(path), None)


def last_lines(path: Path) -> Iterator[JsonObject]:
    """The whole lines at the end of a file of JSON objects, as many as 64 KiB hold, the last one first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65536))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return
    yield from _objects(lines[::-1])


def _objects(lines: list[bytes]) -> Iterator[JsonObject]:
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def locked(path: Path, *, wait: bool) -> IO[bytes]:
    """A file that is there, locked until it is closed. BlockingIOError where another process has it, which is not waited for.

    Opened for writing, though nothing is written: on NFS, Linux makes a POSIX lock of flock's, which is refused to who only reads.
    """
    with ExitStack() as closed_on_error:
        file = closed_on_error.enter_context(open(path, "r+b"))
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        closed_on_error.pop_all()
        return file

"""What the files of a run say of it while the parent works: its state in `run.json`, and what happened to it in `events.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from search.errors import RunError, StoppedError, full
from search.files import append_line, read_json, write_json
from search.options import RunState
from search.ownership import Ownership, exclusively
from search.rundir import RunFolder, resume_command


def now() -> str:
    """The time, as the files of a run tell it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def note(folder: RunFolder, event: str, **details: object) -> None:
    """Note what has happened to a run."""
    append_line(folder.events, {"time": now(), "event": event, **details}, sync=True)


def set_state(folder: RunFolder, state: RunState, reason: str | None = None) -> None:
    """Let `run.json` say how the run stands, and note it, unless it says so already."""
    if not folder.record.exists():
        return  # the run could not begin, and its folder has been removed
    with exclusively(folder):
        record = read_json(folder.record)
        if (record["state"], record["reason"]) == (state, reason):
            return
        write_json(folder.record, {**record, "state": state, "reason": reason})
    if state != "running":
        note(folder, f"run_{state}")


@contextmanager
def state_kept(folder: RunFolder, ownership: Ownership) -> Iterator[None]:
    """Keep `run.json`'s state true to what happens inside."""

    def end(state: RunState, reason: str | None = None) -> None:
        if ownership.alone():  # while others work on it, the run does not end
            set_state(folder, state, reason)

    try:
        set_state(folder, "running")
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

"""What can go wrong with a run, each with the exit code of the command that it ends.

0 budget met, 1 failed at run time, 2 usage or configuration, 3 finished with no usable trial (0 where it had finished before it was
resumed), 4 not found or damaged, 5 locked by another runner, 130 and 143 on signals. Every message is one line that names the thing,
its value, the rule and the remedy.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from typing import ClassVar

from search.terminal import printable, say

DEBUG_VARIABLE = "GROW_DEBUG"
"""Environment variable that makes this process and its children print tracebacks; `--debug` sets it."""


class RunError(Exception):
    """A run failed at run time."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(RunError, ValueError):
    """What the user asked for cannot be done."""

    exit_code = 2


class NoUsableTrialError(RunError):
    """The budget is met, but no trial is within the tolerance."""

    exit_code = 3


class StorageError(RunError):
    """Nothing can be written any more. A worker that ends so leaves its trial as it was, and the run stops."""

    exit_code = 74  # EX_IOERR of sysexits.h; the command ends with 1, as its message comes from the parent


class RunNotFoundError(RunError):
    """There is no such run, or its files are damaged."""

    exit_code = 4


class RunLockedError(RunError):
    """Another process owns the run."""

    exit_code = 5


class StoppedError(Exception):
    """A signal asked this process to stop."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class ChildError(Exception):
    """A child process failed and has said why on stderr."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a child process ended with exit code {code}")
        self.exit_code = code if 0 < code <= 5 else 1


def cause(error: BaseException) -> str:
    """What the driver of a storage said, in one line."""
    said = getattr(error.__cause__ or error, "orig", None) or error.__cause__ or error
    return " ".join(str(said).split())


def full(error: OSError) -> bool:
    """Whether an error says that the disk, the quota or the allowed size of a file is used up, or that the disk fails."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no more memory: Python's own, a GPU's, or that of torch's allocator on CPU.

    >>> memory_ran_out(MemoryError()), memory_ran_out(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which the parent does without
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def suggestion(name: str, known: tuple[str, ...]) -> str:
    """What the user may have meant, as the end of a message.

    >>> suggestion("mnits", ("mnist", "digits"))
    "; did you mean 'mnist'?"
    """
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command or a child's main function; what goes wrong becomes one line on stderr and an exit code."""
    try:
        return command() or 0
    except ChildError as error:
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout has gone, as in `grow runs | head`; python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _report(StoppedError(signal.SIGINT), 130)
    except (RunError, StoppedError) as error:
        return _report(error, error.exit_code)
    except ValueError as error:
        return _report(error, 2)
    except Exception as error:  # the last resort of a process: whatever it is, the user gets one line
        return _report(error, 1)


def _report(error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (RunError, StoppedError, ValueError)):
        text = f"{type(error).__name__}: {text}"
    if os.environ.get(DEBUG_VARIABLE):
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    elif code == 1 and not isinstance(error, RunError):
        text += "; run again with --debug for the traceback"
    say(text)
    return code

"""Environment variables of the project: one for every option of a command, and a few that belong to no option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches

from search.errors import DEBUG_VARIABLE, ConfigurationError
from search.process import PARENT_VARIABLE
from search.terminal import say

PREFIX = "GROW_"

FILE_VARIABLE = "GROW_CONFIG"
"""Names the file that options are read from."""

DATA_VARIABLE = "GROW_DATA"
"""Names a folder in which studies look for their data."""

SLIP = 0.8
"""How alike two names are, by difflib, of which one is a slip of the pen: a letter more, less or other, or two that changed places."""

_OTHERS = (FILE_VARIABLE, DATA_VARIABLE, DEBUG_VARIABLE, PARENT_VARIABLE)


def variable_of(option: str) -> str:
    """The variable that an option can be set by.

    >>> variable_of("gpus_per_trial")
    'GROW_GPUS_PER_TRIAL'
    """
    return PREFIX + option.upper()


def check(environment: Mapping[str, str], here: Iterable[str], everywhere: Callable[[], Iterable[str]]) -> None:
    """ConfigurationError for a variable that is nearly one of ours, and so does nothing; others of our prefix are named on stderr.

    here: options of the command that is given; everywhere: those of all commands, which take their time to find, so that they are asked
    for only where a variable is none of the former.
    """
    known = {*map(variable_of, here), *_OTHERS}
    left = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if not left:
        return
    known |= set(map(variable_of, everywhere()))
    bare = sorted(name.removeprefix(PREFIX) for name in known)
    for name in left:
        if name in known:
            continue
        meant = _meant(name.removeprefix(PREFIX).upper(), bare)
        if meant is not None:
            raise ConfigurationError(f"{name} is set, but must be a variable of grow's; did you mean {PREFIX}{meant}? Else unset it")
        say(f"{name} is set, but is no variable of grow's: it is ignored")


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The one of ours that a name was surely meant to be: a slip of the pen, or its beginning. Other programs have names of their own.

    >>> _meant("TRAILS", ["GPUS", "TRIALS"]), _meant("ALLOW_CONFIG", ["ALLOW_CONFIG_CHANGE"]), _meant("STORAGE_URL", ["STORAGE"])
    ('TRIALS', 'ALLOW_CONFIG_CHANGE', None)
    """
    return next(iter(get_close_matches(name, known, n=1, cutoff=SLIP)), None) or next(
        (option for option in known if option.startswith(f"{name}_")), None
    )

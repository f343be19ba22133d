"""Environment variables of the project: one for every option of a command, and a few that belong to no option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from search.errors import DEBUG_VARIABLE, ConfigurationError
from search.process import PARENT_VARIABLE
from search.terminal import say

PREFIX = "GROW_"

FILE_VARIABLE = "GROW_CONFIG"
"""Names the file that options are read from."""

DATA_VARIABLE = "GROW_DATA"
"""Names a folder in which studies look for their data."""

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
        close = get_close_matches(name.removeprefix(PREFIX).upper(), bare, n=1)
        if close:
            raise ConfigurationError(f"{name} is set, but must be a variable of grow's; did you mean {PREFIX}{close[0]}? Else unset it")
        say(f"{name} is set, but is no variable of grow's: it is ignored")

"""What the parser of the command line refuses, said as everything else is: the name, its value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, RepeatArgumentError, UnknownOptionError, UnusedCliTokensError
from cyclopts.exceptions import UnknownCommandError

from search.errors import suggestion

_RULES = {int: "a whole number", float: "a number", bool: "true or false"}


def in_words(error: CycloptsError, tokens: Sequence[str], commands: tuple[str, ...]) -> str:
    """The message. tokens: the arguments of the command line; commands: those that there are."""
    help_of = f"see grow {tokens[0]} --help" if tokens and tokens[0] in commands else "see grow --help"
    match error:
        case UnknownCommandError(unused_tokens=[given, *_]):
            return f"command is {given!r}, but must be one of {', '.join(commands)}{suggestion(given, commands)}"
        case MissingArgumentError():
            return _missing(error, tokens, help_of)
        case CoercionError():
            return _wrong_type(error, help_of)
        case UnknownOptionError():
            return _unknown(error, help_of)
        case RepeatArgumentError():
            return f"{error.token.keyword} is given twice, but must be given once; leave one out"
        case UnusedCliTokensError(unused_tokens=[given, *_]):
            return f"{given!r} is given, but must be left out: there is no place for it; {help_of}"
        case _:
            return str(error)


def _missing(error: MissingArgumentError, tokens: Sequence[str], help_of: str) -> str:
    """What is missing; with the option that was meant where one of another name was given."""
    if error.argument is None:
        return str(error)
    name, told = error.argument.name, str(error).partition("Did you mean ")[2].rstrip("?")
    lacks = f"{name} has no value" if name in tokens else f"{name} is missing"
    hint = f"; did you mean {told}?" if told else f"; {help_of}"
    return f"{lacks}, but must be given{' one' if name in tokens else ''}{hint}"


def _wrong_type(error: CoercionError, help_of: str) -> str:
    """What is of another type than its option, and where it comes from."""
    token, wanted = error.token, error.target_type
    choices = tuple(map(str, get_args(wanted))) if get_origin(wanted) is Literal else ()
    rule = f"one of {', '.join(choices)}" if choices else None if wanted is None else _RULES.get(wanted)
    if error.argument is None or token is None or rule is None:
        return str(error)
    name = error.argument.name.removeprefix("--").replace("-", "_").lower()
    source = "" if token.source == "cli" else f" in {token.source}"
    return f"{name} is {token.value!r}{source}, but must be {rule}{suggestion(token.value, choices) or f'; {help_of}'}"


def _unknown(error: UnknownOptionError, help_of: str) -> str:
    """An option that the command does not have."""
    given = (error.token.keyword or error.token.value).partition("=")[0]
    known = tuple(argument.name for argument in error.argument_collection if argument.name.startswith("--"))
    return f"{given} is given, but must be an option of this command{suggestion(given, known) or f'; {help_of}'}"

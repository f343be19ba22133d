"""Where the options of a command come from: the command line over GROW_* variables over grow.toml over their defaults.

An option of every command can be set for good: ``gpus`` of ``grow run`` by GROW_GPUS, or by ``gpus`` under ``[run]`` of a file grow.toml
in the current folder, or of the file that --config or GROW_CONFIG names. Fields of the recipe are resolved one by one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from search import environment
from search.environment import FILE_VARIABLE, variable_of
from search.errors import ConfigurationError, suggestion

if TYPE_CHECKING:
    from cyclopts import App, Token
    from cyclopts.argument import Argument, ArgumentCollection

DEFAULT_FILE = Path("grow.toml")
COMMAND_LINE = "command line"
FIELDS = "set"
"""The option whose values are fields of the recipe, key=value, each of which has a source of its own."""

SOURCES: ContextVar[Mapping[str, str]] = ContextVar("sources")
"""Where the options of the current command come from, by their names; recipe fields as ``set.NAME``. Others are at their defaults."""


def take_config(tokens: list[str]) -> Path | None:
    """Take --config FILE out of the arguments; None where no file was named."""
    for place, token in enumerate(tokens):
        if token.startswith("--config="):
            return Path(tokens.pop(place).partition("=")[2])
        if token == "--config":
            if place + 1 == len(tokens):
                raise ConfigurationError("config is not given, but must be a TOML file; name it after --config")
            named = tokens[place + 1]
            del tokens[place : place + 2]
            return Path(named)
    default = os.environ.get(FILE_VARIABLE)
    return Path(default) if default else None


class Configuration:
    """Completes what the command line says; cyclopts calls it before it converts the values of a command.

    commands: after which tables may be named. options: finds the options of all of them.
    """

    def __init__(self, file: Path | None, commands: tuple[str, ...], options: Callable[[], Iterable[str]]) -> None:
        self._commands, self._all_options = commands, options
        self._file = DEFAULT_FILE if file is None else file
        self._must_exist = file is not None

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Give every option the values of its highest source."""
        if not commands:
            return
        options = {name: argument for argument in arguments if (name := option_of(argument))}
        environment.check(os.environ, options, self._all_options)
        written = self._table(commands[0], tuple(options))
        sources: dict[str, str] = {}
        for name, argument in options.items():
            variable = variable_of(name)
            levels = [
                (str(self._file), _texts(written[name]) if name in written else []),
                (variable, _split(name, os.environ[variable]) if variable in os.environ else []),
            ]
            given = list(argument.tokens)
            lower = [(source, text) for source, texts in levels for text in texts]
            if name == FIELDS:  # those that come later win, field by field
                argument.tokens.clear()
                for source, token in [*((token.source, token) for token in _tokens(lower)), *((COMMAND_LINE, token) for token in given)]:
                    argument.append(token.evolve(index=len(argument.tokens)))
                    sources[f"{FIELDS}.{token.value.partition('=')[0]}"] = source
            elif given:
                sources[name] = COMMAND_LINE
            elif lower:
                highest = lower[-1][0]
                for token in _tokens([level for level in lower if level[0] == highest]):
                    argument.append(token)
                sources[name] = highest
        SOURCES.set(sources)

    def _table(self, command: str, known: tuple[str, ...]) -> Mapping[str, object]:
        """What the file says of a command."""
        try:
            content = tomllib.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if self._must_exist:
                raise ConfigurationError(f"config is {str(self._file)!r}, but must be a file that exists; name another") from error
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{self._file} is unreadable ({error}), but must be TOML; mend it") from error
        for name, value in content.items():
            if name not in self._commands:
                raise ConfigurationError(self._misplaced(name, value, command, known))
        table = content.get(command, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"{command} is {table!r} in {self._file}, but must be a table; begin it with [{command}]")
        table = {name.replace("-", "_"): value for name, value in table.items()}
        for name in table:
            if name not in known:
                raise ConfigurationError(
                    f"{name} is set under [{command}] of {self._file}, but must be one of {', '.join(known)}{suggestion(name, known)}"
                )
            if isinstance(table[name], list | dict) and name != FIELDS:
                raise ConfigurationError(f"{name} is {table[name]!r} in {self._file}, but must be one value; leave the others out")
        return table

    def _misplaced(self, name: str, value: object, command: str, known: tuple[str, ...]) -> str:
        """What is wrong with what the file says outside the tables of commands."""
        rule = "must be under the table of a command"
        if name.replace("-", "_") in known:
            return f"{name} is set at the top of {self._file}, but {rule}; move it under [{command}]"
        what = f"{name} is set at the top"
        if isinstance(value, dict):
            what, rule = f"[{name}] is a table", "must be named after a command"
        remedy = suggestion(name, self._commands) or "; rename or remove it"
        return f"{what} of {self._file}, but {rule}, one of {', '.join(self._commands)}{remedy}"


def option_of(argument: Argument) -> str:
    """The name of an option as files and variables have it; none of what has its place on the command line."""
    return argument.name.removeprefix("--").replace("-", "_") if argument.name.startswith("--") else ""


def _texts(value: object) -> list[str]:
    """A TOML value as the command line would say it."""
    if isinstance(value, dict):
        return [f"{name}={_text(item)}" for name, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _split(name: str, value: str) -> list[str]:
    return value.split() if name == FIELDS else [value]


def _tokens(values: Sequence[tuple[str, str]]) -> Iterator[Token]:
    from cyclopts import Token

    for source, text in values:
        yield Token(keyword=source, value=text, source=source)

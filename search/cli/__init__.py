"""The command line. One module a command, imported when the command is given: `grow --help` must not wait for any of them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from search.errors import DEBUG_VARIABLE, ConfigurationError, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cyclopts import App

_COMMANDS = {
    "run": "Search recipes for a study's network: accuracy against training throughput on several devices.",
    "resume": "Go on with a run that was stopped or killed.",
    "runs": "List the runs.",
    "show": "Show a run, or one of its trials.",
    "watch": "Follow a run that is at work.",
    "compare": "Show runs side by side.",
    "report": "Write a run as one HTML page.",
    "dashboard": "Open a run in Optuna's dashboard.",
    "export": "Take a trained network home, needing nothing of this project.",
    "best": "Show the best network of a run and how to use it.",
    "train": "Train one recipe on several devices, growing and pruning on the way.",
    "studies": "List the studies and their start networks.",
    "profile": "Measure the devices and the links between them.",
    "calibrate": "Compare predictions with the clock, and correct them.",
    "plan": "Find the parallel strategy under which a network trains fastest.",
    "completion": "Print a script that lets a shell complete the commands.",
}

_EPILOGUE = """Example: grow run --study mnist --gpus 2

Every command takes --debug, which shows tracebacks, and --config FILE. What is not on the command line is taken from the environment
(GROW_GPUS), then from FILE or ./grow.toml (gpus under [run])."""


def main() -> None:
    """Entry point of the command `grow`."""
    tokens = sys.argv[1:]
    if "--debug" in tokens:
        tokens.remove("--debug")
        os.environ[DEBUG_VARIABLE] = "1"
    sys.exit(exit_code_of(lambda: _dispatch(tokens)))


def application(config: Path | None = None, command: str | None = None) -> App:
    """The command line as cyclopts sees it, with what a configuration file says. The help of ``command`` is that of its function."""
    from cyclopts import App

    from search.cli.configuration import Configuration

    app = App(
        name="grow",
        help="Find a network's own architecture for the hardware that it will run on.",
        help_epilogue=_EPILOGUE,
        version=_version,
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        config=Configuration(config, tuple(_COMMANDS), lambda: _options(app)),
    )
    for name, text in _COMMANDS.items():
        app.command(f"search.cli.{name}:{name}", name=name, help=None if name == command else text)
    return app


def _options(app: App) -> Iterator[str]:
    """The options of all commands."""
    from search.cli.configuration import option_of

    for name in _COMMANDS:
        yield from filter(None, map(option_of, app[name].assemble_argument_collection()))


def _dispatch(tokens: list[str]) -> int | None:
    from cyclopts import CycloptsError

    from search.cli.configuration import take_config

    app = application(take_config(tokens), tokens[0] if tokens else None)
    try:
        code = app(tokens)
    except CycloptsError as error:
        from search.cli.refusal import in_words

        raise ConfigurationError(in_words(error, tokens, tuple(_COMMANDS))) from error
    return code if isinstance(code, int) else 0


def _version() -> str:
    from importlib.metadata import version

    return version("growprune")

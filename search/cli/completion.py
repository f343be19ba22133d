"""`grow completion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a script that lets a shell complete commands, options and their values.

    Example: grow completion bash > ~/.local/share/bash-completion/completions/grow

    Parameters
    ----------
    shell
        The shell that reads it.
    """
    from search.cli import application

    app = application()
    app.meta.default(_everywhere)
    print(app.generate_completion(shell=shell))
    return 0


def _everywhere(*, config: Path | None = None, debug: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What every command takes, and is taken out of the arguments before they reach one.

    Parameters
    ----------
    config
        File that options are read from.
    debug
        Show tracebacks.
    """

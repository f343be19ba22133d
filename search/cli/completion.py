"""`grow completion`."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a script that lets a shell complete commands, options and their values.

    Example: grow completion bash > ~/.local/share/bash-completion/completions/grow

    Parameters
    ----------
    shell
        The shell that reads it.
    """
    from search.cli import application

    print(application().generate_completion(shell=shell))
    return 0

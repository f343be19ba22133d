"""What reaches the terminal. Texts of a run, which others may have written, are shown as they are: never as markup, never as commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_LAYOUT = frozenset("\n\t")


def printable(text: str) -> str:
    r"""The text with control characters, and whatever else has no shape of its own, as escapes; lines and tabs stay.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _LAYOUT else char.encode("unicode_escape").decode() for char in text)


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"grow: {printable(text)}\n")
    sys.stderr.flush()


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """What tables are drawn on. Brackets and colons in a text mean nothing: ``[cuda:0]`` is no style, ``:no_entry:`` no picture."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

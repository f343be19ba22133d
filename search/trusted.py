"""Study files whose code the user has asked for: each one that was ever named on the command line, kept for this user by its hash.

A run's folder, a recipe or a checkpoint that somebody else made may name any file. Nothing of it runs as code unless the user himself has
named that very content, with `grow run --study` or by allowing a change. The copy also lets a run finish what it began after the file
was changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from search.errors import ConfigurationError
from search.files import write_text

_SHA256 = re.compile(r"[0-9a-f]{64}")


def folder() -> Path:
    """Where the files are kept for this user."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "grow" / "studies"


def trust(content: str) -> str:
    """Keep the text of a study's file that the user has named. Returns its sha256."""
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    if trusted(sha256) is None:
        path = folder() / f"{sha256}.py"
        try:
            write_text(path, content)
        except OSError as error:
            reason = error.strerror or "not writable"
            raise ConfigurationError(
                f"{folder()} cannot be written ({reason}), but must be for a study in a file; set XDG_CACHE_HOME to a folder that can"
            ) from error
    return sha256


def trusted(sha256: str) -> str | None:
    """The text of the study file of that hash, None if the user never named it."""
    if not _SHA256.fullmatch(sha256):
        return None
    try:
        content = (folder() / f"{sha256}.py").read_bytes()
    except OSError:
        return None
    return content.decode() if hashlib.sha256(content).hexdigest() == sha256 else None

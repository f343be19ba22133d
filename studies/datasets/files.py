"""Named files with known content: found plain or gzipped in a folder, read and verified."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """A data set as published: its file names in order, each with the sha256 of its decompressed content.

    ``validation`` of its training samples are held out for validation.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    validation: int

    @property
    def sha256(self) -> str:
        """One hash over all files: that of their hashes, one a line."""
        return hashlib.sha256("".join(f"{sha256}\n" for _, sha256 in self.files).encode()).hexdigest()

    def missing(self, folder: Path) -> list[str]:
        """The files that the folder lacks."""
        return [name for name, _ in self.files if locate(folder, name) is None]

    def read(self, folder: Path) -> tuple[bytes, ...]:
        """The verified content of each file. ValueError for a missing, damaged or truncated one."""
        return tuple(_read(folder, name, sha256) for name, sha256 in self.files)


def locate(folder: Path, name: str) -> Path | None:
    """The file, plain or gzipped, in a folder."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def verified(content: bytes, sha256: str, origin: object, remedy: str) -> bytes:
    """The decompressed content, if it is what was published. ValueError that names its origin and the expected hash if not."""
    try:
        plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{origin} is damaged ({error}), but its decompressed content must have the sha256 {sha256}; {remedy}") from error
    found = hashlib.sha256(plain).hexdigest()
    if found != sha256:
        raise ValueError(f"{origin} has the sha256 {found} when decompressed, but must have {sha256}; {remedy}")
    return plain


def _read(folder: Path, name: str, sha256: str) -> bytes:
    path = locate(folder, name)
    if path is None:
        raise ValueError(f"{folder} lacks {name}, but must hold it, plain or gzipped; copy it there")
    return verified(path.read_bytes(), sha256, path, "replace or delete it")

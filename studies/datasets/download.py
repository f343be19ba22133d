"""Download from mirrors that gives up early: without a network it must not keep anybody waiting."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

from studies.datasets.files import Release, verified

_LONGEST_S = 120.0


def download(release: Release, folder: Path, mirrors: Sequence[str], patience_s: float) -> None:
    """Puts what the folder lacks of a release there, gzipped as the mirrors have it. What arrives is verified before it is kept.

    Each mirror (a URL that ends in a slash) is left for good once nothing arrives for ``patience_s``. OSError when no mirror
    delivers; ValueError when one delivered something else than the release, and no other the release.
    """
    until = time.monotonic() + _LONGEST_S
    failures: list[Exception] = []
    for mirror in mirrors:
        try:
            for name in release.missing(folder):
                url = f"{mirror}{name}.gz"
                content = _fetch(url, patience_s, until)
                verified(content, dict(release.files)[name], url, "get it elsewhere and name its folder as --data-dir")
                _write(folder / f"{name}.gz", content)
            return
        except (OSError, ValueError) as error:
            failures.append(error)
    # Wrong content is worse than none, and never passed over in silence.
    raise next((error for error in failures if isinstance(error, ValueError)), OSError("; ".join(map(str, failures))))


def _fetch(url: str, patience_s: float, until: float) -> bytes:
    """What is behind a URL.

    A thread of its own reads, since a name look-up that hangs knows no timeout; it is abandoned when it goes silent.
    """
    arrived: SimpleQueue[bytes | Exception] = SimpleQueue()
    Thread(target=_read_into, args=(arrived, url, patience_s), daemon=True).start()
    content = bytearray()
    while time.monotonic() < until:
        try:
            piece = arrived.get(timeout=patience_s)
        except Empty:
            raise TimeoutError(f"{url}: nothing arrived for {patience_s:g} s") from None
        if isinstance(piece, Exception):
            raise OSError(f"{url}: {piece.reason if isinstance(piece, URLError) else piece}") from piece
        if not piece:
            return bytes(content)
        content += piece
    raise TimeoutError(f"{url}: not there after {_LONGEST_S:g} s")


def _read_into(arrived: SimpleQueue[bytes | Exception], url: str, patience_s: float) -> None:
    try:
        with urlopen(url, timeout=patience_s) as response:
            length = int(response.headers["Content-Length"] or -1)
            read = 0
            while piece := response.read(2**16):
                read += len(piece)
                arrived.put(piece)
        # http.client reports a connection that was cut as the end of the content.
        arrived.put(b"" if length in (-1, read) else OSError(f"ended after {read} of {length} bytes"))
    except (OSError, HTTPException, ValueError) as error:
        arrived.put(error)


def _write(path: Path, content: bytes) -> None:
    """All or nothing: a kill in the middle leaves no file under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise

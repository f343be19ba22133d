"""A headless Chromium that is driven over a pipe, by the DevTools protocol: real layout, real keys, real pixels."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def executable() -> str | None:
    """Where Chromium is, None where there is none."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers, self._number, self._session = commands, answers, 0, ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def open(self, path: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show a file in a window of that size, until it says that it is ready."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self._call("Page.navigate", url=path.as_uri())
        ready = "new Promise(done => { const look = () => document.body?.dataset.ready ? done(true) : setTimeout(look, 20); look(); })"
        assert self.value(ready) is True

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, with the code of that name."""
        codes = {"Tab": 9, "Enter": 13}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "text": "\r" if key == "Enter" else ""}
        self._call("Input.dispatchKeyEvent", type="keyDown", **event)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, clip: dict[str, float] | None = None, scale: float = 1.0) -> bytes:
        """A PNG of the whole page, or of a part of it."""
        if clip is None:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        found = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={**clip, "scale": scale})
        return base64.b64decode(found["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> bytes:
        found = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            found += byte
        return bytes(found)


@contextmanager
def browser() -> Iterator[Page]:
    """A Chromium of its own, which ends with the context and leaves nothing behind."""
    program = executable()
    assert program is not None
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        wired = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'  # the numbers that Chromium expects
        command = ["bash", "-c", wired, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        with os.fdopen(from_us, "wb") as commands, os.fdopen(to_us, "rb") as answers:
            try:
                page = Page(commands, answers)
                yield page
                with suppress(OSError, AssertionError):
                    page._session = ""
                    page._call("Browser.close")
                process.wait(20)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()


def pixels(png: bytes) -> NDArray[np.uint8]:
    """The pixels (height, width, channels) of a PNG of eight bits a channel."""
    at, data, width, height, channels = 8, b"", 0, 0, 0
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
            channels = {2: 3, 6: 4}[colour]
        data += body if kind == b"IDAT" else b""
        at += 12 + size
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    found = np.zeros((height + 1, width + 1, channels), np.int64)  # with a border of zeros above and to the left
    for y, line in enumerate(lines, start=1):
        found[y, 1:] = line[1:].reshape(width, channels)
        _unfilter(int(line[0]), found, y)
    return found[1:, 1:].astype(np.uint8)


def _unfilter(kind: int, found: NDArray[np.int64], y: int) -> None:
    """Undo what PNG does to a line before it is compressed (ISO/IEC 15948, section 9)."""
    if kind == 1:
        found[y, 1:] = np.cumsum(found[y, 1:], 0) % 256
    elif kind == 2:
        found[y] = (found[y] + found[y - 1]) % 256
    elif kind > 2:
        for x in range(1, found.shape[1]):
            left, above, corner = found[y, x - 1], found[y - 1, x], found[y - 1, x - 1]
            found[y, x] = (found[y, x] + ((left + above) // 2 if kind == 3 else _paeth(left, above, corner))) % 256


def _paeth(left: NDArray[np.int64], above: NDArray[np.int64], corner: NDArray[np.int64]) -> NDArray[np.int64]:
    guess = left + above - corner
    a, b, c = abs(guess - left), abs(guess - above), abs(guess - corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))

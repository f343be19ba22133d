"""A PostgreSQL server of the tests' own, where one is installed: on a Unix socket alone, in a folder that is removed with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret%40x"  # as it stands in a URL


def binaries() -> Path:
    """The folder of the newest server's programs; skips where none is installed."""
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not folders or not (folders[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server is installed, neither on the PATH nor under /usr/lib/postgresql")
    return folders[-1]


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a new, empty server's database, with its password."""
    programs = binaries()
    with tempfile.TemporaryDirectory(prefix="grow-pg-") as name:  # a socket's path must be short, and another user's to enter
        folder = Path(name)
        secret = folder / "password"
        secret.write_text(PASSWORD.replace("%40", "@"))
        settings = ["-c", "listen_addresses=", "-c", "fsync=off"]
        server: dict[str, object] = {"cwd": folder}
        if os.geteuid() == 0:  # which the server refuses to run as
            other = pwd.getpwnam("nobody")
            server |= {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
            for path in (folder, secret):
                os.chown(path, other.pw_uid, other.pw_gid)
        made = [programs / "initdb", "-D", folder / "data", "-U", "grow", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        done = subprocess.run(made, capture_output=True, text=True, timeout=60, check=False, **server)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        command = [programs / "postgres", "-D", folder / "data", "-k", folder, *settings]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, **server) as process:  # type: ignore[call-overload]
            try:
                until_ready(folder / "log", process)
                yield f"postgresql://grow:{PASSWORD}@/postgres?host={folder}"
            finally:
                process.send_signal(signal.SIGINT)  # a fast shutdown, which does not wait for clients
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def until_ready(log: Path, process: subprocess.Popen[bytes], words: str = "ready to accept connections") -> None:
    """Wait until a server says that it takes connections."""
    end = time.monotonic() + 30
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)

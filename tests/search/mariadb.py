"""A MariaDB server of the tests' own, where one is installed: on a Unix socket alone, in a folder that is removed with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.search.postgres import PASSWORD, until_ready

TABLES = ("mysql_system_tables.sql", "mysql_system_tables_data.sql")
"""What makes the server's own tables, in the folder of its messages."""


def server() -> Path:
    """The server's program; skips where none is installed."""
    found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("no MariaDB server is installed, neither on the PATH nor under /usr/sbin")
    return Path(found).resolve()


@contextmanager
def mariadb() -> Iterator[str]:
    """The URL of a new, empty server's database, with its password."""
    program = server()
    share = program.parent.parent / "share" / "mysql"
    with tempfile.TemporaryDirectory(prefix="grow-my-") as name:  # a socket's path must be short, and another user's to enter
        folder = Path(name)
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())  # the server refuses to run as root
        (folder / "data").mkdir()
        for path in (folder, folder / "data"):
            os.chown(path, user.pw_uid, user.pw_gid)
        places = [f"--datadir={folder / 'data'}", f"--basedir={program.parent.parent}", f"--lc-messages-dir={share}"]
        command = [program, "--no-defaults", f"--user={user.pw_name}", *places]
        tables = "".join((share / table).read_text() for table in TABLES)
        made = "CREATE DATABASE mysql;\nUSE mysql;\n"
        done = subprocess.run(
            [*command, "--bootstrap"], input=made + tables, capture_output=True, text=True, timeout=60, check=False, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        secret = PASSWORD.replace("%40", "@")
        grants = f"CREATE DATABASE grow; CREATE USER grow@localhost IDENTIFIED BY '{secret}'; GRANT ALL ON grow.* TO grow@localhost;"
        (folder / "first.sql").write_text(grants.replace("; ", ";\n"))
        serving = [
            f"--socket={folder / 'socket'}",
            "--skip-networking",
            f"--pid-file={folder / 'pid'}",
            f"--init-file={folder / 'first.sql'}",
        ]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen([*command, *serving], stdout=log, stderr=log, cwd=folder) as process,
        ):
            try:
                until_ready(folder / "log", process, "ready for connections")
                yield f"mysql://grow:{PASSWORD}@localhost/grow?unix_socket={folder / 'socket'}"
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()

"""A run in Optuna's dashboard: a copy of its journal, on the loopback interface only.

The dashboard writes into the storage that it is given, and can end a study that is at work. It is given a copy, to which whatever the run
appends to its own journal is appended as well. The copy also holds the artifacts: the front and the networks as pictures, the report.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.errors import ConfigurationError, RunNotFoundError
from search.files import write_text
from search.page import network, report
from search.page.front import draw_front

if TYPE_CHECKING:
    from search.load import LoadedRun

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")


class Copy:
    """A copy of a run's journal in a folder, which `follow` brings up to date. The run's own journal is only read."""

    def __init__(self, journal: Path, folder: Path) -> None:
        self._journal, self._read = journal, 0
        self._backend = JournalFileBackend(str(folder / "study.journal"))
        self.follow()
        self.storage = JournalStorage(self._backend)

    def follow(self) -> int:
        """Append the whole lines that are new in the run's journal; how many."""
        try:
            with open(self._journal, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError as error:
            raise RunNotFoundError(f"{self._journal} is missing, but must be there; the run has no trial yet, or is damaged") from error
        whole = new[: new.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            self._backend.append_logs(lines)
        self._read += len(whole)
        return len(lines)


def attach(run: LoadedRun, copy: Copy, folder: Path) -> FileSystemArtifactStore:
    """Put the report, the front and the networks of its members into the copy, as artifacts."""
    kept = folder / "artifacts"
    kept.mkdir()
    store = FileSystemArtifactStore(str(kept))
    study = optuna.load_study(study_name=None, storage=copy.storage)
    drawings = (drawing for number in run.document["pareto"] for drawing in _drawings(run, number))
    # Of the study, since Optuna lets nothing be added to a trial that has ended.
    for name, text in (("front.svg", draw_front(run.document)), *drawings, ("report.html", report(run))):
        write_text(folder / name, text)
        upload_artifact(artifact_store=store, file_path=str(folder / name), study_or_trial=study)
    return store


def _drawings(run: LoadedRun, number: int) -> Iterator[tuple[str, str]]:
    """The network of a trial before and after; nothing where its checkpoint or its study is gone."""
    for what, load in (("before", run.start_network), ("after", run.network)):
        try:
            drawn = load(number)
        except (RunNotFoundError, ValueError):
            continue
        yield f"trial-{number}-{what}.svg", network.drawing(drawn.topology, drawn.parts or {}, f"Network of trial {number} {what}")


@contextmanager
def served(run: LoadedRun, port: int) -> Iterator[tuple[str, Copy]]:
    """The dashboard of a run at a free or given port of the loopback interface: its address, and the copy that it shows."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigurationError(
            "dashboard is asked for, but optuna-dashboard is not installed; install it with: pip install 'growprune[dashboard]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="grow-dashboard-") as name:
        copy = Copy(run.folder.journal, Path(name))
        app = only_loopback(wsgi(copy.storage, artifact_store=attach(run, copy, Path(name))))
        with _server(app, port) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://{HOST}:{server.server_port}", copy
            finally:
                server.shutdown()
                thread.join()


Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


def only_loopback(app: App) -> App:
    """Answer requests to this machine's own names alone: a page elsewhere may let a name of its own point here (DNS rebinding)."""

    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if str(environ.get("HTTP_HOST", "")).rpartition(":")[0] not in _NAMES:
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only for this machine\n"]
        return app(environ, start)

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of every request."""


def _server(app: App, port: int) -> WSGIServer:
    try:
        return make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ConfigurationError(f"port is {port}, but must be free ({error.strerror}); choose another with --port, 0 for any") from error

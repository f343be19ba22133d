from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

import studies.datasets

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell sets it for what runs in its background, and every child inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported


@pytest.fixture(autouse=True, scope="session")
def _own_data_and_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the network nor the user's cache is touched, by the tests or the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROW_DATA", str(Path(studies.datasets.__file__).parent / "bundled"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """No process is there after the test that was not there before it."""
    own = psutil.Process()
    before = set(own.children(recursive=True))
    yield
    assert set(own.children(recursive=True)) <= before


SHARED_RUN = "digits"
"""The fixture that is made once for all processes, while any other one that asks for it waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files in an order in which no process of the tests waits for another.

    What starts processes takes longest: it comes first, so that none begins it last. The first file that needs the shared run makes it
    while another process has files that do not; those that only read it follow.
    """
    sharing = list(dict.fromkeys(item.path for item in items if SHARED_RUN in getattr(item, "fixturenames", ())))

    def place(item: pytest.Item) -> int:
        if item.path in sharing:
            return 0 if item.path == sharing[0] else 2
        folder = item.path.as_posix()
        return 1 if "/tests/search/" in folder else 3 if "/tests/hardware/" in folder else 4

    items.sort(key=place)

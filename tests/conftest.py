from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

import studies.datasets

torch.set_num_threads(1)
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs of the program come first: they take longest, and a process that began them last would keep the others waiting."""
    items.sort(key=lambda item: "/tests/search/" not in item.path.as_posix())

from __future__ import annotations

import gzip
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from studies.datasets import idx, mnist, uci_digits
from studies.datasets.files import Release
from studies.datasets.mnist import BUNDLED, SAMPLE, find
from studies.datasets.split import stratified_order

Folder = Callable[[str], Path]

_LABELS = np.arange(10, dtype=np.uint8).repeat(6)
_CONTENT = {
    "train-images-idx3-ubyte": idx.encode(np.arange(60 * 784, dtype=np.uint32).astype(np.uint8).reshape(60, 28, 28)),
    "train-labels-idx1-ubyte": idx.encode(_LABELS),
    "t10k-images-idx3-ubyte": idx.encode(np.zeros((5, 28, 28), dtype=np.uint8)),
    "t10k-labels-idx1-ubyte": idx.encode(_LABELS[:5]),
}
TINY = Release("tiny", tuple((name, hashlib.sha256(content).hexdigest()) for name, content in _CONTENT.items()), validation=20)
"""In the place of the full set, which the tests must do without."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes a folder that holds the tiny set, gzipped."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        for file, content in _CONTENT.items():
            (path / f"{file}.gz").write_bytes(gzip.compress(content))
        return path

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GROW_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "growprune" / "mnist"


@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=3)))
def test_idx_gives_back_what_was_encoded(array: idx.ByteArray) -> None:
    assert np.array_equal(idx.decode(idx.encode(array)), array)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"<html>", b"\0\0\x0d\1\0\0\0\0", idx.encode(_LABELS)[:-1], idx.encode(_LABELS) + b"\0"]
)
def test_what_is_not_idx_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="the file"):
        idx.decode(content)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_every_prefix_of_a_stratified_order_holds_each_class_in_proportion(classes: list[int], seed: int) -> None:
    labels = np.array(classes, dtype=np.uint8)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    share = np.bincount(labels, minlength=4) / len(labels)
    for length in range(len(labels) + 1):
        # Among c classes, each rounded on its own, a prefix can be off by (c + 1) / 2 halves at most.
        assert np.all(np.abs(np.bincount(labels[order[:length]], minlength=4) - share * length) <= 2.5)


def test_the_bundled_sample_is_stratified_and_small() -> None:
    split = mnist.read(find(BUNDLED))
    assert [len(part.labels) for part in (split.training, split.validation, split.test)] == [8_000, 2_000, 2_000]
    everything = np.concatenate([split.training.labels, split.validation.labels])
    published = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])  # training digits of each class in the full set
    assert np.all(np.abs(np.bincount(everything) - published / 6) <= 1.5)
    assert np.all(np.abs(np.bincount(split.validation.labels) - published / 30) <= 1.5)
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 2.5e6


def test_the_folder_that_is_named_goes_first_then_the_environment_then_the_cache(
    folder: Folder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder("cache/growprune/mnist")
    assert find(None, TINY, mirrors=()).folder == cache
    monkeypatch.setenv("GROW_DATA", str(folder("shared")))
    assert find(None, TINY, mirrors=()).folder == folder("shared2").with_name("shared")
    source = find(folder("named"), TINY, mirrors=())
    assert (source.folder, source.name, source.sha256) == (cache.parents[2] / "named", "tiny", TINY.sha256)
    assert (source.train, source.validation, source.test) == (40, 20, 5)


def test_plain_files_are_as_good_as_gzipped_ones(folder: Folder) -> None:
    path = folder("plain")
    for name, content in _CONTENT.items():
        (path / f"{name}.gz").unlink()
        (path / name).write_bytes(content)
    assert find(path, TINY).name == "tiny"


@pytest.mark.parametrize("where", ["named", "shared", "cache/growprune/mnist"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:40] + b"?" + content[41:], lambda _: b"<html>"])
def test_a_damaged_file_is_an_error_wherever_it_is(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, where: str, damage: Callable[[bytes], bytes]
) -> None:
    path = folder(where)
    victim = path / "train-images-idx3-ubyte.gz"
    victim.write_bytes(damage(victim.read_bytes()))
    monkeypatch.setenv("GROW_DATA", str(path) if where == "shared" else "")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte") as error:
        find(path if where == "named" else None, TINY, mirrors=())
    assert dict(TINY.files)["train-images-idx3-ubyte"] in str(error.value)


@pytest.mark.parametrize("lacking", [1, 4])
def test_a_named_folder_must_hold_the_set(folder: Folder, lacking: int) -> None:
    path = folder("named")
    for name in list(_CONTENT)[:lacking]:
        (path / f"{name}.gz").unlink()
    with pytest.raises(ValueError, match="must hold"):
        find(path, TINY)


def test_what_is_not_there_is_downloaded_and_kept(folder: Folder, cache: Path) -> None:
    mirror = folder("mirror")
    source = find(None, TINY, mirrors=[(mirror / "gone").as_uri() + "/", mirror.as_uri() + "/"])
    assert source.folder == cache
    assert {file.name for file in cache.iterdir()} == {f"{name}.gz" for name in _CONTENT}
    assert find(None, TINY, mirrors=()) == source


def test_a_part_in_the_cache_is_completed(folder: Folder, cache: Path) -> None:
    mirror = folder("mirror")
    folder("cache/growprune/mnist")
    (cache / "t10k-labels-idx1-ubyte.gz").unlink()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (mirror / f"{name}.gz").unlink()
    assert find(None, TINY, mirrors=[mirror.as_uri() + "/"]).folder == cache


def test_a_mirror_with_something_else_is_an_error_unless_another_has_the_set(folder: Folder, cache: Path) -> None:
    good, bad = folder("good"), folder("bad")
    (bad / "train-images-idx3-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"bad/train-images-idx3-ubyte\.gz has the sha256"):
        find(None, TINY, mirrors=[bad.as_uri() + "/"])
    assert not cache.exists()
    assert find(None, TINY, mirrors=[bad.as_uri() + "/", good.as_uri() + "/"]).name == "tiny"


@pytest.fixture
def silent_mirror(tmp_path: Path) -> Iterator[str]:
    """A mirror that never answers: opening a pipe waits for a writer."""
    pipe = tmp_path / "silent" / "train-images-idx3-ubyte.gz"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    yield pipe.parent.as_uri() + "/"
    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # lets the reader go


def test_without_a_network_the_sample_is_used_and_said_so(silent_mirror: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "grow"):
        source = find(None, TINY, mirrors=[silent_mirror, "file:///nowhere/"], patience_s=0.1)
    assert (source.name, source.folder, source.sha256) == ("mnist-sample", BUNDLED, SAMPLE.sha256)
    (record,) = caplog.records
    for part in ("nothing arrived for 0.1 s", "nowhere", "sample", "--data-dir", "GROW_DATA", "train-images-idx3-ubyte"):
        assert part in record.getMessage()


def test_the_silence_of_all_mirrors_lasts_five_seconds_at_most() -> None:
    assert len(mnist.MIRRORS) * mnist.PATIENCE_S <= 5


def test_an_environment_that_does_not_hold_the_set_is_named_in_the_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GROW_DATA", str(tmp_path))
    assert find(None, TINY, mirrors=()).name == "mnist-sample"
    assert str(tmp_path) in caplog.text


def test_digits_are_split_into_stratified_parts(tmp_path: Path) -> None:
    source = uci_digits.find(None)
    split = uci_digits.read(source)
    parts = (split.training, split.validation, split.test)
    assert [len(part.images) for part in parts] == [source.train, source.validation, source.test] == [1197, 300, 300]
    for part in parts[1:]:
        assert np.all(np.abs(np.bincount(part.labels) - 30) <= 2)
    assert max(int(part.images.max()) for part in parts) == 16
    with pytest.raises(ValueError, match=r"digits\.csv"):
        uci_digits.find(tmp_path)

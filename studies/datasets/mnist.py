"""MNIST: found on the machine, downloaded, or the bundled sample of it; and its fixed split.

Legend: N samples; images (N, 28, 28), labels (N,), both unsigned bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from search.definition import DataSource
from search.environment import DATA_VARIABLE
from studies.datasets import idx
from studies.datasets.download import download
from studies.datasets.files import Release
from studies.datasets.idx import ByteArray
from studies.datasets.split import Images, Split, stratified_order

logger = logging.getLogger("grow")

FULL = Release(
    "mnist",
    (
        ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    validation=10_000,
)
SAMPLE = Release(
    "mnist-sample",
    (
        ("mnist-sample-train-images-idx3-ubyte", "2a187d3df859d0941713415260f94c2b3ca996135dc9c470036ca5fabb51305d"),
        ("mnist-sample-train-labels-idx1-ubyte", "19687a7fd88ba90721a04fe72efce307711a3b96ce27204a1865393519b216f0"),
        ("mnist-sample-t10k-images-idx3-ubyte", "06a1570a32ca767787fd683a71f8f979d096d9d2f57e601e1ce9451b882cf1a5"),
        ("mnist-sample-t10k-labels-idx1-ubyte", "be59d455669c053e4dff823ba7dc8dfc3978b5fd4849d7489736d1a13268d553"),
    ),
    validation=2_000,
)
BUNDLED = Path(__file__).parent / "bundled"
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

PATIENCE_S = 2.0
"""How long each of the two mirrors may stay silent: without a network the bundled sample is used after at most 4 s."""

_SPLIT_SEED = 0


def find(data_dir: Path | None, full: Release = FULL, mirrors: Sequence[str] = MIRRORS, patience_s: float = PATIENCE_S) -> DataSource:
    """Where MNIST is: in ``data_dir``, ``GROW_DATA``, the user's cache (downloaded into it if need be), or the bundled sample.

    Files are plain or gzipped. ValueError when ``data_dir`` does not hold the set, and for a damaged or incomplete set anywhere.
    """
    if data_dir is not None:
        release = _held(data_dir, full)
        if release is None:
            names = ", ".join(name for name, _ in full.files)
            raise ValueError(f"data_dir is {data_dir}, but must hold {names}, plain or gzipped; leave it out to have MNIST downloaded")
        return _source(release, data_dir)

    tried = []
    if shared := os.environ.get(DATA_VARIABLE):
        if release := _held(Path(shared), full):
            return _source(release, Path(shared))
        tried.append(f"{DATA_VARIABLE} is {shared}, which lacks it")
    cache = _cache()
    try:
        if full.missing(cache):
            download(full, cache, mirrors, patience_s)
        return _source(full, cache)
    except OSError as error:
        tried.append(str(error))
    logger.warning(
        "The full MNIST could not be had (%s). A bundled sample is used: 10,000 training and 2,000 test digits of 60,000 and 10,000."
        " For the full set, put %s (plain or .gz) into a folder and pass it as --data-dir or in GROW_DATA.",
        "; ".join(tried),
        ", ".join(name for name, _ in full.files),
    )
    return _source(SAMPLE, BUNDLED)


def read(source: DataSource) -> Split:
    """The digits of a source. Validation digits are held out of the training file, stratified, by a fixed seed."""
    assert source.folder is not None
    release = FULL if source.name == FULL.name else SAMPLE
    train_images, train_labels, test_images, test_labels = _arrays(release, source.folder)
    order = stratified_order(train_labels, _SPLIT_SEED)
    training, validation = order[: -release.validation], order[-release.validation :]
    return Split(
        Images(train_images[training], train_labels[training]),
        Images(train_images[validation], train_labels[validation]),
        Images(test_images, test_labels),
    )


def _held(folder: Path, full: Release) -> Release | None:
    """What a folder holds: the full set, the sample, or nothing. ValueError for a part of either."""
    for release in (full, SAMPLE):
        missing = release.missing(folder)
        if not missing:
            return release
        if len(missing) < len(release.files):
            raise ValueError(f"{folder} lacks {', '.join(missing)}, but must hold the whole set; copy the rest there")
    return None


def _source(release: Release, folder: Path) -> DataSource:
    _, train_labels, _, test_labels = _arrays(release, folder)
    return DataSource(
        name=release.name,
        sha256=release.sha256,
        folder=folder.resolve(),
        train=len(train_labels) - release.validation,
        validation=release.validation,
        test=len(test_labels),
    )


@lru_cache(maxsize=2)  # a process first finds its data, then reads it: one pass over the files does for both
def _arrays(release: Release, folder: Path) -> tuple[ByteArray, ...]:
    return tuple(idx.decode(content) for content in release.read(folder))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growprune" / "mnist"

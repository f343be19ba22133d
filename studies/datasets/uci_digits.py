"""The 8x8 digits of the UCI set, bundled whole: 1,797 of them, and their fixed split.

Legend: N samples; images (N, 8, 8) of values 0 to 16, labels (N,), both unsigned bytes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from search.definition import DataSource
from studies.datasets.files import Release
from studies.datasets.mnist import BUNDLED
from studies.datasets.split import Images, Split, stratified_order

RELEASE = Release("digits", (("digits.csv", "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"),), validation=300)
_SAMPLES, _TEST = 1_797, 300
_SPLIT_SEED = 0


def find(data_dir: Path | None) -> DataSource:
    """The bundled file, or the same in ``data_dir``, plain or gzipped. ValueError when it is not there, or damaged."""
    folder = data_dir or BUNDLED
    RELEASE.read(folder)
    return DataSource(
        name=RELEASE.name,
        sha256=RELEASE.sha256,
        folder=folder.resolve(),
        train=_SAMPLES - RELEASE.validation - _TEST,
        validation=RELEASE.validation,
        test=_TEST,
    )


def read(source: DataSource) -> Split:
    """The digits of a source, split by a fixed seed, stratified."""
    assert source.folder is not None
    (content,) = RELEASE.read(source.folder)
    rows = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.uint8)  # (N, 65): the pixels, then the label
    images, labels = rows[:, :64].reshape(-1, 8, 8), rows[:, 64]
    training, validation, test = np.split(stratified_order(labels, _SPLIT_SEED), [source.train, source.train + source.validation])
    return Split(
        Images(images[training], labels[training]),
        Images(images[validation], labels[validation]),
        Images(images[test], labels[test]),
    )

"""Makes the bundled sample of MNIST: 10,000 training and 2,000 test digits, stratified, by a fixed seed.

Run as ``python -m studies.datasets.make_mnist_sample FOLDER``, where the folder holds the full set.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from studies.datasets import idx
from studies.datasets.mnist import BUNDLED, FULL, SAMPLE
from studies.datasets.split import stratified_order

_SEED = 0
_TRAINING, _TEST = 10_000, 2_000


def make(full: Path, folder: Path) -> None:
    """Writes the sample of the full set into a folder. ValueError if it is not the bundled one, byte for byte."""
    train_images, train_labels, test_images, test_labels = map(idx.decode, FULL.read(full))
    training = np.sort(stratified_order(train_labels, _SEED)[:_TRAINING])
    test = np.sort(stratified_order(test_labels, _SEED)[:_TEST])
    arrays = train_images[training], train_labels[training], test_images[test], test_labels[test]
    for (name, _), array in zip(SAMPLE.files, arrays, strict=True):
        # No time stamp, so that the same digits give the same file.
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx.encode(array), compresslevel=9, mtime=0))
    SAMPLE.read(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), BUNDLED)

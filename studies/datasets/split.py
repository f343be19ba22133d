"""Labelled images and their fixed, stratified splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studies.datasets.idx import ByteArray


@dataclass(frozen=True)
class Images:
    """Images (N, H, W) and their labels (N,)."""

    images: ByteArray
    labels: ByteArray


@dataclass(frozen=True)
class Split:
    """The three parts of a data set."""

    training: Images
    validation: Images
    test: Images


def stratified_order(labels: ByteArray, seed: int) -> NDArray[np.int64]:
    """A random order of the samples (N,) of which every prefix and every suffix holds each class in proportion, within one sample.

    >>> stratified_order(np.array([0, 0, 0, 0, 1, 1], dtype=np.uint8), seed=0).tolist()
    [2, 5, 1, 3, 4, 0]
    """
    # RandomState, because its streams are frozen for good: a split must not change with the version of numpy.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class by class, random within
    sizes = np.bincount(labels)
    # The i-th of a class's n samples stands at (i + 1/2) / n of the way.
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    return grouped[np.argsort(place, kind="stable")].astype(np.int64)

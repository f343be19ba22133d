"""The IDX format of MNIST: two zero bytes, element type, number of axes, their lengths as big-endian int32, then the elements.

Format: http://yann.lecun.com/exdb/mnist/. Only unsigned bytes are read and written.
"""

from __future__ import annotations

import struct
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

ByteArray: TypeAlias = NDArray[np.uint8]

_UNSIGNED_BYTE = 0x08


def decode(content: bytes) -> ByteArray:
    """The array in an IDX file's content.

    >>> decode(encode(np.array([[1, 2], [3, 4]], dtype=np.uint8))).tolist()
    [[1, 2], [3, 4]]
    """
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)) or len(content) < 4 * (1 + content[3]):
        raise ValueError(f"the file starts with {content[:4].hex()!r}, but must be IDX of unsigned bytes (000008 and the number of axes)")
    axes = content[3]
    shape = struct.unpack_from(f">{axes}I", content, 4)
    elements = content[4 * (1 + axes) :]
    if len(elements) != prod(shape):
        raise ValueError(f"the file has {len(elements)} elements, but must have {prod(shape)} for the shape {shape} in its header")
    return np.frombuffer(elements, dtype=np.uint8).reshape(shape)


def encode(array: ByteArray) -> bytes:
    """An IDX file's content for the array."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()

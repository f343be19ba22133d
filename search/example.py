"""What a start network that comes without a study is given to read: of which shape, and how that is found out.

Legend: B batch, C channels, H W a feature map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from search.errors import ConfigurationError

IMAGES = (28, 32, 224)
"""Sides of the images of well-known data sets."""


def shape_of(text: str) -> tuple[int, ...]:
    """The shape of one sample.

    >>> shape_of("3x224x224"), shape_of("784")
    ((3, 224, 224), (784,))
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ConfigurationError(f"input is {text!r}, but must be the shape of one sample, as in 3x224x224 or 784; say it so")
    return tuple(int(size) for size in text.split("x"))


def example_of(module: nn.Module, name: str, shape: Sequence[int] | None = None) -> Tensor:
    """One sample (1, ...) that the module reads: zeros, of the given shape or of the smallest usual one that it can read."""
    first = next((child for child in module.modules() if isinstance(child, (nn.Linear, nn.Conv2d, nn.Embedding))), None)
    dtype = torch.int64 if isinstance(first, nn.Embedding) else torch.float32
    for tried in [shape] if shape is not None else _usual(first):
        example = torch.zeros(1, *tried, dtype=dtype)
        reason = _unread(module, example)
        if reason is None:
            return example
        if shape is not None:
            raise ConfigurationError(
                f"input is {'x'.join(map(str, shape))}, but must be what network {name!r} reads ({reason}); name another"
            )
    raise ConfigurationError(
        f"input is not given, but must be for network {name!r}, which reads none of the usual shapes; name it with --input"
    )


def _usual(first: nn.Module | None) -> Iterator[tuple[int, ...]]:
    if isinstance(first, nn.Linear):
        yield (first.in_features,)
    if isinstance(first, nn.Conv2d):
        yield from ((first.in_channels, side, side) for side in IMAGES if first.in_channels == 1 or side > IMAGES[0])
    if isinstance(first, nn.Embedding):
        yield from ((length,) for length in (16, 32, 64, 128, 256))


def _unread(module: nn.Module, example: Tensor) -> str | None:
    """Why a module cannot read a sample; None where it can."""
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(example)
    except (RuntimeError, ValueError, IndexError) as error:
        return " ".join(str(error).split())[:120]
    finally:
        module.train(training)
    return None

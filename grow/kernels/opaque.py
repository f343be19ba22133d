"""Operations that torch.compile keeps whole: libraries and compiled code of our own, into which it cannot look.

Eager mode calls the function itself, which costs nothing; a graph under compilation gets one operator of the library ``grow``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def opaque(name: str, fake: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function of tensors and numbers under ``grow::name``.

    ``fake`` takes the same arguments, whose tensors hold no values, and returns empty tensors of the result's shape and strides. The
    result must share no memory with the arguments, which stay as they are. Autograd does not look inside: call it within an
    autograd function.
    """

    def registered(function: Callable[P, R]) -> Callable[P, R]:
        operator = torch.library.custom_op(f"grow::{name}", function, mutates_args=())
        operator.register_fake(fake)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                result: R = operator(*args, **kwargs)
                return result
            return function(*args, **kwargs)

        return call

    return registered

"""A device that is not the CPU, for machines that have no other: its tensors compute on the CPU, but mix with its own as little as a GPU's.

Within `elsewhere()` a tensor on `DEVICE` is one that wraps a tensor of the CPU. An operator that is given tensors of both raises
RuntimeError, but for what CUDA takes as well: numbers, and indices that are still on the CPU; numpy takes none of them. As every value is
computed by the CPU's own operators, what is trained elsewhere is the same, bit by bit, as what is trained here.

It shows that nothing is forgotten on the wrong device. It shows nothing of a GPU's kernels, streams, clocks and rounding, nor of branches
that ask for CUDA by name. The type is "meta", the one that torch lets tensors claim without a backend; what else it means plays
no role within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_MADE_HERE = torch.tensor
_AUTOCASTS = torch.is_autocast_enabled
_INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default")
"""What takes indices from the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is on `DEVICE`. ``here``: the one that computes."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        """Around a tensor of the CPU."""
        held = {"dtype": here.dtype, "device": DEVICE, "layout": here.layout, "requires_grad": here.requires_grad}
        if here.layout == torch.strided:
            held |= {"strides": here.stride(), "storage_offset": here.storage_offset()}
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(cls, here.size(), **held)  # type: ignore[attr-defined]
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Compute on the CPU."""
        return _called(operator, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """The values and where they are."""
        return f"Elsewhere({self.here!r})"

    def __getitem__(self, index: Any) -> Tensor:
        """Lists in an index become tensors of the CPU, as a GPU is given them."""
        return super().__getitem__(tree_map(lambda one: _MADE_HERE(one) if isinstance(one, list) else one, index, is_leaf=_is_list))

    def tolist(self) -> Any:
        """The values, which a GPU copies as well."""
        return self.here.tolist()

    def new_tensor(self, data: Any, **settings: Any) -> Tensor:
        """A tensor beside this one."""
        return _MADE_HERE(data, **{"dtype": self.dtype, **settings}).to(DEVICE)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _called(operator, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it there is a device that is not the CPU."""

    def made(data: Any, *, device: torch.device | str | None = None, **settings: Any) -> Tensor:
        return _MADE_HERE(data, **settings).to(device or "cpu")

    def autocasts(kind: str | None = None) -> bool:
        return False if kind == DEVICE.type else _AUTOCASTS() if kind is None else _AUTOCASTS(kind)

    with patch.object(torch, "tensor", made), patch.object(torch, "is_autocast_enabled", autocasts), _Dispatch():
        yield DEVICE


def here(tensor: Tensor) -> Tensor:
    """The values of a tensor that may be elsewhere."""
    return tensor.here if isinstance(tensor, Elsewhere) else tensor


def _is_list(one: object) -> bool:
    return isinstance(one, list)


def _called(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operator gives: elsewhere, if what it was given is there, or if it is asked for there."""
    name, wanted = str(operator), kwargs.get("device")
    if name == "aten.copy_.default":
        here(args[0]).copy_(here(args[1]), *args[2:], **kwargs)
        return args[0]
    if name == "aten._to_copy.default":
        return _moved(operator, args[0], wanted, {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")})
    given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    there = [tensor for tensor in given if isinstance(tensor, Elsewhere)]
    if there and name not in _INDEXED:
        _refuse_mixed(name, given)
    asked = {**kwargs, "device": "cpu"} if wanted is not None else kwargs
    found = operator(*tree_map(here, args), **tree_map(here, asked))
    if not there and (wanted is None or torch.device(wanted) != DEVICE):
        return found
    known = {id(tensor.here): tensor for tensor in there}  # what was changed in place stays the tensor that it was

    def wrap(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    wrapped = tree_map(wrap, found)
    return return_and_correct_aliasing(operator, args, dict(kwargs), wrapped) if there and operator.namespace == "aten" else wrapped


def _moved(operator: Callable[..., Tensor], tensor: Tensor, wanted: object, settings: Mapping[str, Any]) -> Tensor:
    stays = isinstance(tensor, Elsewhere) if wanted is None else torch.device(str(wanted)) == DEVICE
    copy = operator(here(tensor), **settings)
    return Elsewhere(copy) if stays else copy


def _refuse_mixed(name: str, given: Sequence[Tensor]) -> None:
    """RuntimeError where one of the tensors is on the CPU and no number."""
    mixed = [tuple(tensor.shape) for tensor in given if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    if mixed:
        raise RuntimeError(f"{name} was given tensors on {DEVICE} and tensors on cpu of the shapes {mixed}")

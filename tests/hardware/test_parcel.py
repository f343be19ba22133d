"""What crosses between processes arrives as it was sent, and calls nothing that it should not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardware.execute.parcel import PACKAGES, found, name_of, pack, unpack
from tests.hardware.test_profile import made_up_profile

OURS = (*PACKAGES, "tests")
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@dataclass(frozen=True, eq=False)
class Held:
    """A record with what records hold."""

    name: str
    weights: Mapping[str, torch.Tensor]
    parts: np.ndarray[Any, Any]


@given(values)
def test_plain_values_come_back_with_their_types(value: object) -> None:
    back = unpack(pack(value))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    sent = [tensor, tensor.t(), tensor[1:], torch.zeros(0, 2, dtype=dtype), torch.ones((), dtype=dtype)]  # memory is shared
    for mine, theirs in zip(unpack(pack(sent)), sent, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs)


def test_records_functions_and_methods_are_named_and_found_again() -> None:
    held = Held("mlp", {"fc1": torch.tensor([1.5, float("inf")])}, np.array([0, 1, 1]))
    back = unpack(pack(held), OURS)
    assert type(back) is Held
    assert (back.name, back.parts.tolist(), back.weights["fc1"].tolist()) == ("mlp", [0, 1, 1], [1.5, float("inf")])
    profile = made_up_profile()
    function, kernel = unpack(pack((name_of, profile.kernel)))
    assert function is name_of
    assert kernel.__self__ == profile
    assert kernel.__func__ is type(profile).kernel


def test_a_parcel_tells_which_packages_it_names() -> None:
    packages: set[str] = set()
    pack([name_of, Held("", {}, np.zeros(0))], packages)
    assert packages == {"hardware", "tests"}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("a"), torch.nn.ReLU(), np.int64(3), lambda: None])
def test_what_cannot_be_sent_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="but must be"):
        pack(value)


def parcel_of(plain: object) -> bytes:
    text = json.dumps(plain).encode()
    return len(text).to_bytes(8, "big") + text


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"function": "os:system"}, "os:system is named, but must be in one of the packages grow, hardware, search, studies"),
        ({"record": ["pathlib:Path", {}]}, "must be in one of the packages"),
        ({"function": "hardware.execute.ranks:subprocess.run"}, "must be a function or a class that is defined there"),
        ({"function": "hardware.execute.ranks:os"}, "must be a function or a class that is defined there"),
        ({"function": "hardware.execute.ranks:absent"}, "must be a function or a class that is defined there"),
        ({"function": "grow.checkpoint:Checkpoint"}, "must be a function"),
        ({"record": ["hardware.execute.parcel:pack", {}]}, "must be a dataclass"),
        ({"method": [{"record": ["hardware.sweep.clock:Patience", {"repeats": 1}]}, "__class__"]}, "must be a function"),
        ({"call": ["os:system", "true"]}, "must be one that is sent"),
    ],
)
def test_a_parcel_that_names_anything_else_is_refused(plain: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(parcel_of(plain))


def test_a_name_is_that_under_which_something_is_defined() -> None:
    assert name_of(found("hardware.profile:Profile.kernel")) == "hardware.profile:Profile.kernel"
    with pytest.raises(ValueError, match="must be importable by name"):
        name_of(lambda: None)

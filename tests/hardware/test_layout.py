from dataclasses import replace

import numpy as np
import pytest
from torch import nn, zeros

from grow.network import Network
from hardware.layout import OLD_NAMES, STRATEGIES, allowed, check, divided, name_of, strategy
from hardware.partition import Partition
from hardware.workload import Workload
from tests.contracts.topologies import branched, convolutional, mlp, with_heads

WORK = Workload.of(mlp(3, 4, 4, 2))
CONVOLUTIONAL = Workload.of(convolutional())


def test_the_named_strategies() -> None:
    assert strategy(WORK, "single") == dict.fromkeys(["s0", "s1", "s2", "s3"], "whole")
    assert strategy(WORK, "data") == dict.fromkeys(["s0", "s1", "s2", "s3"], "batch")
    assert strategy(WORK, "model") == {"s0": "whole", "s1": "units", "s2": "units", "s3": "whole"}


def test_one_weird_trick_divides_the_batch_of_convolutions_and_the_units_of_what_follows() -> None:
    found = strategy(CONVOLUTIONAL, "owt")
    assert found == {"in": "batch", "a": "batch", "b": "batch", "c": "units", "out": "whole"}
    assert strategy(WORK, "owt") == strategy(WORK, "model")


def test_without_a_hidden_linear_layer_one_weird_trick_is_data_parallelism() -> None:
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), zeros(1, 1, 4, 4))
    work = Workload.of_network(network)
    assert strategy(work, "owt") == strategy(work, "data")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_recognised(name: str) -> None:
    assert name_of(CONVOLUTIONAL, strategy(CONVOLUTIONAL, name)) == name
    check(CONVOLUTIONAL, strategy(CONVOLUTIONAL, name))


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_old_names_are_understood(old: str, new: str) -> None:
    assert strategy(WORK, old) == strategy(WORK, new)


def test_what_has_no_name_is_mixed() -> None:
    assert name_of(WORK, {"s0": "whole", "s1": "units", "s2": "whole", "s3": "whole"}) == "mixed"


def test_what_cannot_be_divided_is_whole_under_model_parallelism() -> None:
    topology = with_heads()
    spaces = tuple(replace(space, mixed=True, contracted=space.name == "h") for space in topology.spaces)  # others: by layer norms alone
    work = Workload.of(replace(topology, spaces=spaces))
    assert allowed(work, "h") == ("whole", "batch")
    assert strategy(work, "model") == {"in": "whole", "a": "units", "h": "whole", "b": "units", "out": "whole"}
    with pytest.raises(ValueError, match="layout of space 'h' is 'units', but must be whole or batch: space 'h' has units that a softmax"):
        check(work, {**strategy(work, "model"), "h": "units"})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy is 'pipeline', but must be one of single, data, model, owt"):
        strategy(WORK, "pipeline")


def test_a_strategy_of_other_spaces_is_refused() -> None:
    with pytest.raises(ValueError, match="must name exactly those of the network"):
        name_of(WORK, {"s0": "whole"})


def test_the_output_is_not_divided_by_units() -> None:
    with pytest.raises(ValueError, match="layout of space 's3' is 'units', but must be whole or batch: inputs and outputs"):
        check(WORK, dict.fromkeys(["s0", "s1", "s2"], "whole") | {"s3": "units"})


def test_what_is_joined_has_one_layout() -> None:
    work = Workload.of(branched())
    with pytest.raises(ValueError, match="layer 'head' reads 'a' batch, 'b' units for whole, but must have what it reads in one layout"):
        check(work, {"in": "whole", "a": "batch", "b": "units", "out": "whole"})


def test_a_batch_input_is_for_batch_readers() -> None:
    with pytest.raises(ValueError, match="layer 'fc1' reads 's0' batch for units"):
        check(WORK, {"s0": "batch", "s1": "units", "s2": "units", "s3": "whole"})


def test_only_the_spaces_that_are_units_are_divided() -> None:
    partition = Partition({"a": np.arange(6) % 2, "b": np.arange(9) % 2, "c": np.arange(12) % 2}, 2)
    assert list(divided(strategy(CONVOLUTIONAL, "owt"), partition, 2).parts) == ["c"]
    with pytest.raises(ValueError, match="partition has 2 parts, but must have 3"):
        divided(strategy(CONVOLUTIONAL, "owt"), partition, 3)
    with pytest.raises(ValueError, match="must divide 'c', which is 'units'"):
        divided(strategy(CONVOLUTIONAL, "owt"), Partition({}, 2), 2)
    with pytest.raises(ValueError, match="partition is None, but must be given under 'units'"):
        divided(strategy(CONVOLUTIONAL, "owt"), None, 2)

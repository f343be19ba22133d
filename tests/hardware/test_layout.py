import pytest

from hardware.layout import STRATEGIES, name_of, strategy
from hardware.workload import Workload
from tests.contracts.topologies import mlp

WORK = Workload.of(mlp(3, 4, 4, 2))


def test_the_named_strategies() -> None:
    assert strategy(WORK, "single") == dict.fromkeys(["s0", "s1", "s2", "s3"], "whole")
    assert strategy(WORK, "data") == dict.fromkeys(["s0", "s1", "s2", "s3"], "batch")
    assert strategy(WORK, "units") == {"s0": "whole", "s1": "units", "s2": "units", "s3": "whole"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_recognised(name: str) -> None:
    assert name_of(WORK, strategy(WORK, name)) == name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy is 'model', but must be one of single, data, units"):
        strategy(WORK, "model")


def test_a_strategy_of_other_spaces_is_refused() -> None:
    with pytest.raises(ValueError, match="must name exactly those of the network"):
        name_of(WORK, {"s0": "whole"})

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from grow.candidates import Candidates
from grow.criteria import CONNECTIVITY, Criterion, RunningMean, criterion, smoothed, two_stage, weighted_sum
from grow.evidence import Evidence, LayerEvidence, gather
from grow.memory import Memory
from grow.network import Network
from grow.patterns import Choice
from grow.scoring import to_grow, to_prune
from grow.structured import fan_in, pattern


def network(density: float = 0.5) -> Network:
    torch.manual_seed(0)
    found = Network(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), torch.zeros(1, 12))
    rng = np.random.default_rng(0)
    found.set_connections({c.layer: np.flatnonzero(rng.random(c.possible) < density) for c in found.topology.layers})
    return found


def evidence(found: Network, chosen: Criterion) -> Evidence:
    draws = torch.Generator().manual_seed(1)
    batch = (torch.randn(10, 12, generator=draws), torch.randint(3, (10,), generator=draws))
    return gather(found, [batch], functional.cross_entropy, chosen.needs, torch.Generator().manual_seed(2))


def lists(choice: Choice) -> dict[str, list[int]]:
    return {layer: positions.tolist() for layer, positions in choice.items() if len(positions)}


def pruned(found: Network, chosen: Criterion, count: int = 40) -> dict[str, list[int]]:
    return lists(to_prune(found, chosen, evidence(found, chosen), count))


def grown(found: Network, chosen: Criterion, count: int = 40) -> dict[str, list[int]]:
    return lists(to_grow(found, chosen, evidence(found, chosen), count))


# ---------------------------------------------------------------- weighted sum


def test_a_sum_weighs_scores_by_their_mean() -> None:
    """Existing weights 1, 2, 3 (mean 2); curvatures of 4, 2, 0 give h w^2 / 2 = 2, 4, 0 (mean 2)."""
    both = weighted_sum("both", [(criterion("magnitude"), 1.0), (criterion("obd"), 3.0)])
    given = LayerEvidence(torch.tensor([[1.0, 2.0, 3.0]]), {"curvature": torch.tensor([[4.0, 2.0, 0.0]])}, torch.Generator())
    assert both.score(given).tolist() == [[0.5 + 3 * 1, 1 + 3 * 2, 1.5]]
    assert both.needs == {"curvature"}


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_a_sum_with_one_weight_chooses_as_that_criterion_alone(weights: tuple[float, float]) -> None:
    found, parts = network(), (criterion("magnitude"), criterion("obd"))
    assert pruned(found, weighted_sum("sum", list(zip(parts, weights, strict=True)))) == pruned(found, parts[weights.index(1.0)])


def test_a_sum_does_not_depend_on_the_scale_of_its_parts_or_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    found, magnitude = network(), criterion("magnitude")
    large = Criterion("large", frozenset(), lambda e: e.weight.abs() * 1e6)
    plain = pruned(found, weighted_sum("sum", [(magnitude, 1.0), (criterion("obd"), 1.0)]))
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", 30)
    assert pruned(found, weighted_sum("sum", [(large, 1.0), (criterion("obd"), 1.0)])) == plain


# ---------------------------------------------------------------- two stages


@pytest.mark.parametrize("choose", [pruned, grown])
def test_two_stages_choose_as_the_expensive_one_alone_when_the_filter_is_wide(choose) -> None:  # type: ignore[no-untyped-def]
    found = network()
    cheap, expensive = (criterion("magnitude"), criterion("obd")) if choose is pruned else (criterion("random"), criterion("gradient"))
    assert choose(found, two_stage(cheap, expensive, 1e6)) == choose(found, expensive)


def test_two_stages_choose_among_what_the_cheap_one_leaves() -> None:
    found = network()
    survivors = pruned(found, criterion("magnitude"), 120)
    chosen = pruned(found, two_stage(criterion("magnitude"), criterion("obd"), 2.0), 50)
    assert sum(map(len, chosen.values())) == 50
    assert all(set(positions) <= set(survivors[layer]) for layer, positions in chosen.items())
    assert chosen != pruned(found, criterion("magnitude"), 50)
    assert chosen != pruned(found, criterion("obd"), 50)


class Made(TorchDispatchMode):
    """Counts the values of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.values += sum(t.numel() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor))
        return out


def test_the_expensive_evidence_is_gathered_for_rows_with_survivors_only() -> None:
    """All small weights stand in one row of the last hidden layer: its curvature alone is computed, and no backward pass goes deeper."""
    torch.manual_seed(0)
    layers = (nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    found = Network(nn.Sequential(*layers), torch.zeros(1, 12))
    with torch.no_grad():
        found.layers["4"].weight[5] *= 1e-6
    alone, staged = criterion("obd"), two_stage(criterion("magnitude"), criterion("obd"), 1.0)
    asked = []

    def work(chosen: Criterion) -> int:
        with Made() as counter:
            given = evidence(found, chosen)
            left, score = chosen.ready(Candidates(given, True, 20, frozenset()))
            left.scored(score)
        asked.append(left.evidence)
        return counter.values

    assert work(staged) < work(alone) / 2
    assert {name: rows.tolist() for name, rows in asked[0].rows.items() if rows is not None and len(rows)} == {"4": [5]}


def test_a_filter_that_leaves_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"multiple is 0\.5, but must be at least 1"):
        two_stage(criterion("magnitude"), criterion("obd"), 0.5)
    inner = two_stage(criterion("magnitude"), criterion("obd"), 2.0)
    with pytest.raises(ValueError, match="a part of criterion 'sum' narrows the candidates"):
        pruned(network(), weighted_sum("sum", [(inner, 1.0)]))
    with pytest.raises(ValueError, match="parts of criterion 'none' is empty"):
        weighted_sum("none", [])


# ---------------------------------------------------------------- smoothing


class Given:
    """A criterion that scores every connection with a number that the test sets."""

    def __init__(self) -> None:
        self.value = 0.0
        self.criterion = Criterion("given", frozenset(), self._score)

    def _score(self, found: LayerEvidence) -> Tensor:
        return torch.full_like(found.weight, self.value)


@pytest.mark.parametrize("kernel", ["dense", "csr"])
def test_scores_are_averaged_over_the_updates_and_new_connections_start_afresh(kernel: str) -> None:
    found, inner = network(), Given()
    found.use_kernels(lambda case: kernel, batch=4)
    memory = RunningMean(Memory(found), Memory(found))
    for follower in memory.memories:
        found.attach(follower)
    mean = smoothed(inner.criterion, memory, decay=0.5)

    def scores() -> np.ndarray:
        left, score = mean.ready(Candidates(evidence(found, mean), True, 1))
        return left.scored(score)["0"][1]

    inner.value = 1.0
    assert np.allclose(scores(), 1.0)
    inner.value = 4.0
    assert np.allclose(scores(), (0.5 * 1 + 4) / 1.5)
    new = np.setdiff1d(np.arange(240), found.topology.layer("0").positions())[:1]
    found.grow_connections({"0": new})
    inner.value = 2.0
    after = scores()
    place = np.searchsorted(found.topology.layer("0").positions(), new)
    assert after[place] == 2.0
    assert np.allclose(np.delete(after, place), (0.25 * 1 + 0.5 * 4 + 2) / 1.75)


def test_smoothed_scores_are_for_pruning() -> None:
    found = network()
    mean = smoothed(criterion("magnitude"), RunningMean(Memory(found), Memory(found)))
    with pytest.raises(ValueError, match="smoothed scores are asked for absent connections"):
        grown(found, mean)
    with pytest.raises(ValueError, match="decay is 1, but must be in"):
        smoothed(criterion("magnitude"), RunningMean(Memory(found), Memory(found)), 1)


# ---------------------------------------------------------------- connectivity


def test_the_pair_that_says_least_goes_first() -> None:
    """Hidden units 0, 1 | 2, 3 on two parts. Unit 0 tells part 1 |1| + |1|, unit 2 tells part 0 |5|: that of unit 0 goes, no local 0.1."""
    found = Network(nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)), torch.zeros(1, 1))
    names = [space.name for space in found.topology.hidden]
    found.assign({name: np.array([0, 0, 1, 1]) for name in names})
    found.set_connections({"1": np.array([0, 2, 5, 8, 12, 15])})  # (4, 4): remote are 2 (unit 2 to row 0), 8 and 12 (unit 0 to rows 2, 3)
    with torch.no_grad():
        weight = found.layers["1"].weight.view(-1)
        weight[torch.tensor([0, 2, 5, 8, 12, 15])] = torch.tensor([0.1, 5.0, 0.1, 1.0, -1.0, 0.1])
    given = gather(found, [], functional.cross_entropy, frozenset(), torch.Generator())
    assert to_prune(found, CONNECTIVITY, given, 2, price=0.0)["1"].tolist() == [8, 12]
    assert to_prune(found, CONNECTIVITY, given, 3, price=0.0)["1"].tolist() == [2, 8, 12]


def test_connectivity_needs_parts() -> None:
    with pytest.raises(ValueError, match="parts of the network is None, but connectivity is measured between parts; assign"):
        pruned(network(), CONNECTIVITY)


# ---------------------------------------------------------------- patterns in the choice


def test_a_pattern_shapes_what_is_pruned_and_grown() -> None:
    found = network()
    found.set_connections(dict.fromkeys(found.layers))
    obd = criterion("obd")
    found.prune_connections(to_prune(found, obd, evidence(found, obd), 300, pattern=fan_in()))
    for layer in found.topology.layers[:2]:
        sizes = np.bincount(layer.positions() // layer.shape[1], minlength=layer.shape[0])
        assert sizes.max() - sizes.min() <= 2  # the layer's strongest connection is not for choice
    gradient = criterion("gradient")
    plain = to_grow(found, gradient, evidence(found, gradient), 50)
    assert lists(to_grow(found, gradient, evidence(found, gradient), 50, pattern=pattern("unstructured"))) == lists(plain)
    assert sum(map(len, to_grow(found, gradient, evidence(found, gradient), 50, pattern=pattern("block_2x2")).values())) == 50
    with pytest.raises(ValueError, match=r"price is 1\.0 and pattern is 'fan_in', but only one may be given"):
        to_grow(found, gradient, evidence(found, gradient), 5, 1.0, pattern=fan_in())

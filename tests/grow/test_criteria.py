import pytest
import torch
from torch import nn
from torch.nn import functional

from grow.criteria import CRITERIA, Criterion, criterion
from grow.evidence import LayerEvidence, gather
from grow.network import Network
from tests.contracts.criterion import CriterionContract, evidence


class TestCriterion(CriterionContract):
    @pytest.fixture(params=CRITERIA)
    def criterion(self, request: pytest.FixtureRequest) -> Criterion:
        return criterion(request.param)


def test_scores_of_two_weights() -> None:
    given = LayerEvidence(
        torch.tensor([[-2.0, 0.0]]), {"gradient": torch.tensor([[0.5, -3.0]]), "curvature": torch.tensor([[0.25, 4.0]])}, torch.Generator()
    )
    assert criterion("magnitude").score(given).tolist() == [[2.0, 0.0]]
    assert criterion("gradient").score(given).tolist() == [[0.5, 3.0]]
    assert criterion("obd").score(given).tolist() == [[0.5, 0.0]]


def test_random_scores_differ_from_draw_to_draw() -> None:
    given = evidence((4, 3), criterion("random"))
    assert not torch.equal(criterion("random").score(given), criterion("random").score(given))


def test_a_misspelt_name_is_an_error_that_suggests_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"criterion is 'magnitud', but must be one of magnitude, .*; did you mean 'magnitude'\?"):
        criterion("magnitud")
    with pytest.raises(ValueError, match=r"must be one of magnitude, lamp, .*random, magnitude_then_obd, taylor_then_obd$"):
        criterion("xyz")


def test_every_criterion_goes_by_its_name() -> None:
    assert all(criterion(name).name == name for name in CRITERIA)


# ---------------------------------------------------------------- OBD against the loss


Trained = tuple[Network, torch.Tensor, torch.Tensor]


def _trained(module: nn.Module) -> Trained:
    """A network in float64 at a minimum of its loss, on samples so many and so noisy that the minimum is not at infinity."""
    draws = torch.Generator().manual_seed(1)
    x, noise = torch.randn(1000, 5, generator=draws, dtype=torch.float64), torch.randn(1000, 3, generator=draws, dtype=torch.float64)
    targets = (torch.tanh(x[:, :3] * x[:, 1:4] * 2) + x[:, :3] + noise / 2).argmax(1)
    network = Network(module, torch.zeros(1, 5)).double()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return network, x, targets


@torch.no_grad()
def _loss_changes(network: Network, inputs: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
    """By how much the loss rises when each single weight loses a share of itself, over all layers."""
    base = functional.cross_entropy(network(inputs), targets)
    changes = []
    for layer in network.layers.values():
        flat = layer.weight.view(-1)
        for i, value in enumerate(flat.tolist()):
            flat[i] = value * (1 - share)
            changes.append(functional.cross_entropy(network(inputs), targets) - base)
            flat[i] = value
    return torch.stack(changes)


def _saliencies(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    obd = criterion("obd")
    found = gather(network, [(inputs, targets)], functional.cross_entropy, obd.needs, torch.Generator())
    return torch.cat([obd.score(found.layer(name)).flatten() for name in network.layers])


def _rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    ranks = torch.stack([one.argsort().argsort(), other.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def test_obd_is_the_loss_change_to_second_order_at_a_minimum() -> None:
    torch.manual_seed(0)
    trained = _trained(nn.Sequential(nn.Linear(5, 3)))  # linear: its Gauss-Newton matrix is its Hessian
    share = 1e-3
    # The mean of both directions, since no optimizer brings the gradient to zero exactly.
    change = (_loss_changes(*trained, share) + _loss_changes(*trained, -share)) / 2
    torch.testing.assert_close(_saliencies(*trained), change / share**2, rtol=1e-4, atol=1e-8)


def test_obd_ranks_the_weights_of_a_trained_network_as_their_removal_does_and_better_than_magnitude() -> None:
    torch.manual_seed(0)
    trained = _trained(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    removal = _loss_changes(*trained, 1.0)
    magnitudes = torch.cat([layer.dense_weight().abs().flatten() for layer in trained[0].layers.values()])
    assert _rank_correlation(_saliencies(*trained), removal) > 0.95 > _rank_correlation(magnitudes, removal)

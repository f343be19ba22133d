"""What every criterion keeps. Subclass, name the class Test..., and supply the fixture `criterion`."""

import pytest
import torch
from torch import Tensor

from grow.criteria import Criterion
from grow.evidence import LayerEvidence, Need


def evidence(shape: tuple[int, ...], criterion: Criterion, seed: int = 0) -> LayerEvidence:
    """Random evidence, exactly what the criterion asks for."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draws)
    found: dict[Need, Tensor] = {need: torch.randn(shape, generator=draws) for need in sorted(criterion.needs)}
    for need in criterion.needs & {"curvature", "fisher", "mc_fisher", "taylor", "synflow"}:
        found[need] = found[need].square()
    return LayerEvidence(weight, found, torch.Generator().manual_seed(seed))


def scores(criterion: Criterion, given: LayerEvidence) -> Tensor:
    return criterion.score(given)


class CriterionContract:
    @pytest.fixture
    def criterion(self) -> Criterion:
        raise NotImplementedError("supply the criterion under test")

    @pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2), (1, 1), (2, 0)])
    def test_scores_have_the_shape_of_the_weight_and_need_only_what_was_declared(
        self, criterion: Criterion, shape: tuple[int, ...]
    ) -> None:
        assert scores(criterion, evidence(shape, criterion)).shape == shape

    def test_scores_are_finite_and_belong_to_no_graph(self, criterion: Criterion) -> None:
        found = scores(criterion, evidence((4, 3), criterion))
        assert bool(found.isfinite().all())
        assert not found.requires_grad

    def test_the_same_evidence_scores_the_same(self, criterion: Criterion) -> None:
        assert torch.equal(scores(criterion, evidence((4, 3), criterion)), scores(criterion, evidence((4, 3), criterion)))

    def test_scoring_changes_no_evidence_and_no_global_randomness(self, criterion: Criterion) -> None:
        given, untouched = evidence((4, 3), criterion), evidence((4, 3), criterion)
        state = torch.get_rng_state()
        scores(criterion, given)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(untouched.weight, given.weight)
        assert all(torch.equal(untouched[need], given[need]) for need in criterion.needs)

    def test_the_sign_of_a_weight_does_not_matter(self, criterion: Criterion) -> None:
        """Turning the sign of every weight turns the sign of the gradient's parts as well."""
        given = evidence((4, 3), criterion)
        odd: frozenset[Need] = frozenset({"gradient", "momentum", "hessian_gradient"})
        turned = {need: -found if need in odd else found for need, found in given.found.items()}
        flipped = LayerEvidence(-given.weight, turned, torch.Generator().manual_seed(0))
        assert torch.equal(scores(criterion, given), scores(criterion, flipped))

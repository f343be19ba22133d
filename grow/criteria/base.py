"""What a criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from grow.candidates import Candidates
from grow.evidence import LayerEvidence, Need

Score: TypeAlias = Callable[[LayerEvidence], Tensor]


@dataclass(frozen=True)
class Criterion:
    """Evidence about some rows of a layer -> scores shaped like their weights; higher means more worth having, for pruning and for
    growth alike.

    needs: the evidence that ``score`` reads besides the weight; nothing else is gathered. prepare: for a criterion that must have
    seen all candidates before it can score one; gives the candidates that are left, and what scores them. round_share: largest share
    of the existing connections that may go before evidence is gathered anew. later: evidence that ``prepare`` has gathered by itself.
    pointwise: the score of an existing connection goes by its own weight alone, or by evidence that is stored like it.
    """

    name: str
    needs: frozenset[Need]
    score: Score
    prepare: Callable[[Candidates], tuple[Candidates, Score]] | None = None
    round_share: float = 1.0
    later: frozenset[Need] = frozenset()
    pointwise: bool = False

    def ready(self, candidates: Candidates) -> tuple[Candidates, Score]:
        """The candidates among which to choose, and the function that scores them."""
        return (candidates, self.score) if self.prepare is None else self.prepare(candidates)

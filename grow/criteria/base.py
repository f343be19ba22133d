"""What a criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from grow.evidence import LayerEvidence, Need


@dataclass(frozen=True)
class Criterion:
    """Evidence about a layer -> scores shaped like its weight; higher means more worth having, for pruning and for growth alike.

    needs: the evidence that ``score`` reads besides the weight; nothing else is gathered.
    """

    name: str
    needs: frozenset[Need]
    score: Callable[[LayerEvidence], Tensor]

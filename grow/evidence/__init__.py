"""What criteria look at: weights, gradients, curvature. Only what is asked for is gathered, and it is handed out in blocks of rows."""

from grow.evidence.base import Block, Effort, Evidence, LayerEvidence, Need
from grow.evidence.gather import gather

__all__ = ["Block", "Effort", "Evidence", "LayerEvidence", "Need", "gather"]

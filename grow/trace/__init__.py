"""Any torch.fx-traceable module made of known operators -> spaces, layers and the axes of every tensor.

Entries of a dimension that scales with the network carry *atoms*. Layers create one atom per row, operators unite atoms (an
addition), carry them along (a permutation, a concatenation) or end them (a contraction). Atoms that are united in the end are
one unit; neighbouring units that appear together everywhere are one space.
"""

from grow.trace.errors import TraceError
from grow.trace.follow import Traced, trace
from grow.trace.spaces import Site

__all__ = ["Site", "TraceError", "Traced", "trace"]

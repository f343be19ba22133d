"""Small topologies, built by hand so that they can be checked by hand."""

from itertools import pairwise

from grow.axes import Segment
from grow.topology import Connections, Space, Topology


def mlp(*widths: int) -> Topology:
    """Spaces s0, s1, ... and dense layers fc1, fc2, ..., layer fc<i> into space s<i>."""
    last = len(widths) - 1
    spaces = [Space(f"s{i}", w, "input" if i == 0 else "output" if i == last else "hidden") for i, w in enumerate(widths)]
    layers = [
        Connections(f"fc{i + 1}", (o, n), (Segment(f"s{i + 1}"),), (Segment(f"s{i}"),), None) for i, (n, o) in enumerate(pairwise(widths))
    ]
    return Topology(tuple(spaces), tuple(layers))


def convolutional() -> Topology:
    """1 -> conv 6 -> conv 9 -> flattened with 4 positions a channel -> 12 -> 3."""
    spaces = (
        Space("in", 1, "input"),
        Space("a", 6, "hidden"),
        Space("b", 9, "hidden"),
        Space("c", 12, "hidden"),
        Space("out", 3, "output"),
    )
    layers = (
        Connections("conv1", (6, 1, 3, 3), (Segment("a"),), (Segment("in"),), None),
        Connections("conv2", (9, 6, 3, 3), (Segment("b"),), (Segment("a"),), None),
        Connections("fc1", (12, 36), (Segment("c"),), (Segment("b", 4),), None),
        Connections("fc2", (3, 12), (Segment("out"),), (Segment("c"),), None),
    )
    return Topology(spaces, layers)


def branched() -> Topology:
    """Two layers into one space (an addition), and one that reads two spaces (a concatenation)."""
    spaces = (Space("in", 10, "input"), Space("a", 12, "hidden"), Space("b", 16, "hidden"), Space("out", 4, "output"))
    layers = (
        Connections("left", (12, 10), (Segment("a"),), (Segment("in"),), None),
        Connections("right", (12, 10), (Segment("a"),), (Segment("in"),), None),
        Connections("middle", (16, 12), (Segment("b"),), (Segment("a"),), None),
        Connections("head", (4, 28), (Segment("out"),), (Segment("a"), Segment("b")), None),
    )
    return Topology(spaces, layers)


def with_heads() -> Topology:
    """A depthwise convolution on 16 channels, then a projection to 4 heads of 6 rows each, and one back from them."""
    spaces = (
        Space("in", 12, "input"),
        Space("a", 16, "hidden"),
        Space("h", 4, "hidden"),
        Space("b", 16, "hidden"),
        Space("out", 4, "output"),
    )
    layers = (
        Connections("conv", (16, 12, 1, 1), (Segment("a"),), (Segment("in"),), None),
        Connections("depthwise", (16, 1, 3, 3), (Segment("a"),), (), None, depthwise=True),
        Connections("value", (24, 16), (Segment("h", 6),), (Segment("a"),), None),
        Connections("joined", (16, 24), (Segment("b"),), (Segment("h", 6),), None),
        Connections("head", (4, 16), (Segment("out"),), (Segment("b"),), None),
    )
    return Topology(spaces, layers)


def residual() -> Topology:
    """A stem, a block that adds to what it reads, and a layer that adds a space to itself."""
    spaces = (Space("in", 6, "input"), Space("r", 12, "hidden"), Space("m", 8, "hidden"), Space("out", 3, "output"))
    layers = (
        Connections("stem", (12, 6), (Segment("r"),), (Segment("in"),), None),
        Connections("down", (8, 12), (Segment("m"),), (Segment("r"),), None),
        Connections("up", (12, 8), (Segment("r"),), (Segment("m"),), None),
        Connections("again", (12, 12), (Segment("r"),), (Segment("r"),), None),
        Connections("head", (3, 12), (Segment("out"),), (Segment("r"),), None),
    )
    return Topology(spaces, layers)


def concatenated() -> Topology:
    """A layer that reads two spaces, one of them twice and in two forms: as it is, and flattened with 4 positions a unit."""
    spaces = (
        Space("in", 5, "input"),
        Space("a", 9, "hidden"),
        Space("b", 10, "hidden"),
        Space("c", 12, "hidden"),
        Space("out", 3, "output"),
    )
    layers = (
        Connections("one", (9, 5), (Segment("a"),), (Segment("in"),), None),
        Connections("two", (10, 9), (Segment("b"),), (Segment("a"),), None),
        Connections("both", (12, 55), (Segment("c"),), (Segment("a"), Segment("b"), Segment("a", 4)), None),
        Connections("head", (3, 12), (Segment("out"),), (Segment("c"),), None),
    )
    return Topology(spaces, layers)

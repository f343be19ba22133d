"""What a trace that cannot be finished says: which module or node, what it is, what it must be, what to do."""

from __future__ import annotations

from torch import fx


class TraceError(ValueError):
    """A module that cannot be traced; the message names the module or the operator, and what to do."""


def where(node: fx.Node) -> str:
    """The node as a user knows it: its module's path, else its name."""
    return f"module {str(node.target)!r}" if node.op == "call_module" else f"node {node.name!r}"


def unknown(node: fx.Node, operator_name: str) -> TraceError:
    """The error about an operator that the tracer does not know."""
    remedy = "rewrite it with known ones or keep it outside the network"
    return TraceError(f"{where(node)} is the operator {operator_name}, but must be one that the tracer knows; {remedy}")

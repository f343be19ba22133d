"""`grow studies`."""

from __future__ import annotations


def studies() -> int:
    """List the installed studies and their start networks.

    Example: grow studies
    """
    from search import report
    from search.definition import installed

    columns = ("study", "start networks, the first by default", "what it trains")
    rows = [(name, ", ".join(study.networks), study.summary) for name, study in installed().items()]
    report.show(report.table("studies", columns, rows, text=columns))
    return 0

"""What does early stopping save, and what does it cost? Hypervolume and training samples with and without it.

    python -m tests.benchmarks.early_stopping [--studies digits mnist] [--seeds 5] [--trials 24] [--set steps=150] [--runs-dir DIR] [--json]

Both searches have the same seed, sampler and number of trials; the first trials are the same, later ones are drawn from what each was
told. The ratio is of the hypervolumes beyond the lowest accuracy within the tolerance and the dense network's throughput, with early
stopping against without; ``samples`` is the share of training samples that it took. Wanted: a ratio of 1 with at most 0.7.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from tests.benchmarks import rows, searches
from tests.benchmarks.rows import Case


def measured(arguments: argparse.Namespace, runs: Path, case: Case) -> dict[str, object]:
    """The row of one study."""
    ratios, shares = [], []
    for seed in range(arguments.seeds):
        ended = searches.searched(arguments, runs, str(case["study"]), seed, "early", ["--early-stopping"])
        whole = searches.searched(arguments, runs, str(case["study"]), seed, "whole", ["--no-early-stopping"])
        sys.stderr.write(f"{case['study']}, seed {seed}: early {ended}, whole {whole}\n")
        shares.append(ended.samples / whole.samples)
        if whole.hypervolume:
            ratios.append(ended.hypervolume / whole.hypervolume)
    if not ratios:
        raise SystemExit(f"no search of {case['study']} found anything, but one must; give more --trials or --set steps")
    return rows.row("early_stopping", case, "hypervolume without", ratios, samples=median(shares), samples_max=max(shares))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    searches.options(parser)
    arguments = parser.parse_args()
    cases = rows.selected([{"study": study, "trials": arguments.trials} for study in arguments.studies], arguments.only)
    with searches.folder_of_runs(arguments) as runs:
        rows.write([measured(arguments, runs, case) for case in cases], arguments.json)


if __name__ == "__main__":
    main()

"""Is a sampler worth more than chance? Hypervolume of searches by each sampler against random ones, at equal budget.

    python -m tests.benchmarks.samplers [--samplers tpe nsga2 gp] [--studies digits mnist] [--seeds 5] [--trials 24] [--set steps=150]
        [--runs-dir DIR] [--json]

The ratio is of the hypervolumes beyond the lowest accuracy within the tolerance and the dense network's throughput, seed by seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from search.options import SamplerChoice
from tests.benchmarks import rows, searches
from tests.benchmarks.rows import Case


def measured(arguments: argparse.Namespace, runs: Path, case: Case) -> dict[str, object]:
    """The row of one study and sampler."""
    study, sampler, ratios = str(case["study"]), str(case["sampler"]), []
    for seed in range(arguments.seeds):
        ours = searches.searched(arguments, runs, study, seed, sampler, ["--sampler", sampler])
        random = searches.searched(arguments, runs, study, seed, "random", ["--sampler", "random"])
        sys.stderr.write(f"{study}, seed {seed}: {sampler} {ours}, random {random}\n")
        if random.hypervolume:
            ratios.append(ours.hypervolume / random.hypervolume)
    if not ratios:
        raise SystemExit(f"no random search of {study} found anything, but one must; give more --trials or --set steps")
    return rows.row("samplers", case, "random", ratios)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choices = [choice for choice in get_args(SamplerChoice) if choice != "random"]
    parser.add_argument("--samplers", nargs="+", choices=choices, default=choices)
    searches.options(parser)
    arguments = parser.parse_args()
    pairs = [(study, sampler) for study in arguments.studies for sampler in arguments.samplers]
    cases = rows.selected([{"study": study, "sampler": sampler, "trials": arguments.trials} for study, sampler in pairs], arguments.only)
    with searches.folder_of_runs(arguments) as runs:
        rows.write([measured(arguments, runs, case) for case in cases], arguments.json)


if __name__ == "__main__":
    main()

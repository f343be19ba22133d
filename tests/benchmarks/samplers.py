"""Is a sampler worth more than chance? Hypervolume of searches by each sampler against random ones, at equal budget.

    python -m tests.benchmarks.samplers [--samplers tpe nsga2 gp] [--studies digits mnist] [--seeds 5] [--trials 32] [--hardware FILE]
        [--network NAME] [--data-dir DIR] [--set steps=150] [--runs-dir DIR] [--json]

The ratio is of the hypervolumes beyond the lowest accuracy within the tolerance and no throughput, seed by seed; ``wins`` counts the
seeds in which the sampler's is the larger. Both searches of a seed have the same baselines, first guesses and number of trials, and
begin with random draws. Trials take turns where one core is allowed (``taskset -c 1``).
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
    study, sampler, ours, random = str(case["study"]), str(case["sampler"]), [], []
    for seed in range(arguments.seeds):
        for found, choice in ((ours, sampler), (random, "random")):
            run = searches.searched(arguments, runs, study, seed, choice, ["--sampler", choice, "--no-early-stopping"])
            found.append(searches.outcome(run))
        sys.stderr.write(f"{study}, seed {seed}: {sampler} {ours[-1]}, random {random[-1]}\n")
        assert ours[-1].reference == random[-1].reference
    ratios = [mine.hypervolume / theirs.hypervolume for mine, theirs in zip(ours, random, strict=True)]
    return rows.row(
        "samplers",
        case,
        "random",
        ratios,
        wins=sum(ratio > 1 for ratio in ratios),
        ratio_of_means=sum(found.hypervolume for found in ours) / sum(found.hypervolume for found in random),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    choices = [choice for choice in get_args(SamplerChoice) if choice != "random"]
    parser.add_argument("--samplers", nargs="+", choices=choices, default=choices)
    searches.options(parser)
    arguments = parser.parse_args()
    cases = rows.selected(
        [{**searches.common(arguments, study), "sampler": sampler} for study in arguments.studies for sampler in arguments.samplers],
        arguments.only,
    )
    with searches.folder_of_runs(arguments) as runs:
        rows.write([measured(arguments, runs, case) for case in cases], arguments.json)


if __name__ == "__main__":
    main()

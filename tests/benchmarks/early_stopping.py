"""What does early stopping save, and what does it cost? Hypervolume and training samples with and without it.

    python -m tests.benchmarks.early_stopping [--studies digits mnist] [--seeds 5] [--trials 32] [--hardware FILE] [--network NAME]
        [--data-dir DIR] [--set steps=150] [--runs-dir DIR] [--json]

Both searches of a seed have the same sampler, number of trials and reference point, the lowest accuracy within the tolerance and no
throughput; the first trials are the same, later ones are drawn from what each was told. The ratio is of the hypervolumes, with early
stopping against without, seed by seed; ``samples`` is the share of training samples that it took, in the median, ``samples_in_all``
that of all seeds together. Wanted: a ratio of 1 with at most 0.7. Trials take turns, so that a search is repeatable, where one core
is allowed (``taskset -c 1``).
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
    ended, whole = [], []
    for seed in range(arguments.seeds):
        study = str(case["study"])
        ended.append(searches.searched(arguments, runs, study, seed, "early", ["--sampler", "tpe", "--early-stopping"]))
        whole.append(searches.searched(arguments, runs, study, seed, "tpe", ["--sampler", "tpe", "--no-early-stopping"]))
        sys.stderr.write(f"{study}, seed {seed}: early {ended[-1]}, whole {whole[-1]}\n")
        assert ended[-1].reference == whole[-1].reference
    return rows.row(
        "early_stopping",
        case,
        "hypervolume without",
        [ours.hypervolume / theirs.hypervolume for ours, theirs in zip(ended, whole, strict=True)],
        ratio_of_means=sum(ours.hypervolume for ours in ended) / sum(theirs.hypervolume for theirs in whole),
        samples=median(ours.samples / theirs.samples for ours, theirs in zip(ended, whole, strict=True)),
        samples_in_all=sum(ours.samples for ours in ended) / sum(theirs.samples for theirs in whole),
        stopped=median(ours.stopped for ours in ended),
    )


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

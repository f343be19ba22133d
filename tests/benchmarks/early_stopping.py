"""What is early stopping worth? Hypervolume of searches with it against those without, at most so large a share of their training samples.

    python -m tests.benchmarks.early_stopping [--share 0.7] [--sampler tpe] [--studies digits mnist] [--seeds 5] [--trials 32]
        [--hardware FILE] [--network NAME] [--tolerance POINTS] [--data-dir DIR] [--set steps=150] [--runs-dir DIR] [--json]

The search without early stopping has so many trials. The one with it begins with the same budget, sampler, seed and reference point (the
lowest accuracy within the tolerance and no throughput), and goes on by ``grow resume --add`` while a whole training more would stay within
the share of the other's samples; trials that it began beyond that do not count. So ``samples``, the share that it took, is never above
``--share``. The ratio is of the hypervolumes then, with early stopping against without, seed by seed.

``at_equal_trials`` is the ratio after so many trials as the search without has, for ``samples_at_equal_trials``; ``shortened`` is the ratio
of the search without early stopping itself, broken off at the same share: what is to be had by searching less. ``baselines`` is the
share of its hypervolume that every search has for nothing: where that is nearly all, a ratio says little. Medians over the seeds.
Under ``--sampler random`` both searches draw the same recipes, whatever they were told of earlier ones: what the rule itself loses, and not
what a model of the recipes makes of it. Trials take turns, so that a search is repeatable, where one core is allowed (``taskset -c 1``).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from search.baselines import DATA_PARALLEL
from tests.benchmarks import rows, searches
from tests.benchmarks.rows import Case
from tests.benchmarks.searches import Outcome, outcome


@dataclass(frozen=True)
class Compared:
    """The searches of one seed. whole: without early stopping; baselines: its first two trials; shortened: the same within the share;
    early, at_equal_trials: with early stopping.
    """

    whole: Outcome
    baselines: Outcome
    shortened: Outcome
    early: Outcome
    at_equal_trials: Outcome

    def ratio(self, one: Outcome) -> float:
        """The hypervolume of one, against the whole search's."""
        return one.hypervolume / self.whole.hypervolume

    def samples(self, one: Outcome) -> float:
        """The share of the whole search's samples that one took."""
        return one.samples / self.whole.samples


def compared(arguments: argparse.Namespace, runs: Path, study: str, seed: int) -> Compared:
    """Search with one seed, or take what was searched before."""
    sampler = arguments.sampler
    whole = searches.searched(arguments, runs, study, seed, sampler, ["--sampler", sampler, "--no-early-stopping"])
    early = searches.searched(arguments, runs, study, seed, f"early-{sampler}", ["--sampler", sampler, "--early-stopping"])
    within = arguments.share * outcome(whole).samples
    searches.extended(early, within)
    found = Compared(
        outcome(whole),
        outcome(whole, DATA_PARALLEL + 1),
        outcome(whole, searches.trials_within(whole, within)),
        outcome(early, searches.trials_within(early, within)),
        outcome(early, arguments.trials),
    )
    assert found.early.reference == found.whole.reference
    assert found.samples(found.early) <= arguments.share
    for name, one in vars(found).items():
        sys.stderr.write(f"{study}, seed {seed}, {name}: ratio {found.ratio(one):.4f}, samples {found.samples(one):.3f}, {one}\n")
    return found


def measured(arguments: argparse.Namespace, runs: Path, case: Case) -> dict[str, object]:
    """The row of one study."""
    found = [compared(arguments, runs, str(case["study"]), seed) for seed in range(arguments.seeds)]
    return rows.row(
        "early_stopping",
        case,
        "hypervolume without",
        [seed.ratio(seed.early) for seed in found],
        ratio_of_means=sum(seed.early.hypervolume for seed in found) / sum(seed.whole.hypervolume for seed in found),
        samples=median(seed.samples(seed.early) for seed in found),
        samples_max=max(seed.samples(seed.early) for seed in found),
        trials=median(seed.early.trials for seed in found),
        stopped=median(seed.early.stopped for seed in found),
        at_equal_trials=median(seed.ratio(seed.at_equal_trials) for seed in found),
        samples_at_equal_trials=median(seed.samples(seed.at_equal_trials) for seed in found),
        baselines=median(seed.ratio(seed.baselines) for seed in found),
        shortened=median(seed.ratio(seed.shortened) for seed in found),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=0.7, help="of the training samples, that early stopping may take")
    parser.add_argument("--sampler", choices=("tpe", "nsga2", "gp", "random"), default="tpe")
    searches.options(parser)
    arguments = parser.parse_args()
    cases = rows.selected(
        [{**searches.common(arguments, study), "sampler": arguments.sampler} for study in arguments.studies], arguments.only
    )
    with searches.folder_of_runs(arguments) as runs:
        rows.write([measured(arguments, runs, case) for case in cases], arguments.json)


if __name__ == "__main__":
    main()

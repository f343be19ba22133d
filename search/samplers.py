"""Optuna's samplers, made anew for one draw from a seed: what they draw depends on the seed and on the trials that they are shown, alone.

Whatever a sampler would remember from one draw to the next must therefore stand in the trials: of these, NSGA-II alone needs it, for the
generation that a trial was born in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from search.options import SamplerChoice

_REMEMBERED = "NSGAIISampler:"
"""How the names of the attributes begin that NSGA-II reads of former trials."""


def sampler(choice: SamplerChoice, seed: int, startup: int) -> BaseSampler:
    """A new sampler. startup: trials before a model is used; for NSGA-II the size of a generation, of which the first is random.

    tpe: Bergstra et al. 2011, for all parameters of a trial together (Falkner et al. 2018). nsga2: Deb et al. 2002. gp: expected
    hypervolume improvement under Gaussian processes (Daulton et al. 2020); where it is used, the process imports torch. All take
    broken constraints into account; random does not look. What still trains counts for tpe as if it were to end badly (the constant liar
    of Ginsbourger et al. 2010), so that trials side by side draw apart; where they go one after the other, nothing does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the version is pinned
        match choice:
            case "tpe":
                return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=startup, constant_liar=True)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=startup)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            case "random":
                return RandomSampler(seed=seed)


def remembered(trial: FrozenTrial) -> Mapping[str, object]:
    """The attributes of a drawn trial that draws to come depend on."""
    return {name: value for name, value in trial.system_attrs.items() if name.startswith(_REMEMBERED)}

"""The profile that a run was planned with: `hardware.json`, frozen when the run began."""

from __future__ import annotations

from hardware.profile import Profile
from search.errors import RunNotFoundError
from search.rundir import RunFolder

_RULE = "must be the profile that the run was planned with; put it back from a copy, or start a new run"


def frozen_profile(folder: RunFolder) -> Profile:
    """The profile of a prepared run; RunNotFoundError where it is missing or damaged, without which none of its trials can be trained."""
    try:
        return Profile.load(folder.hardware)
    except FileNotFoundError as error:
        raise RunNotFoundError(f"{folder.hardware} is missing, but {_RULE}") from error
    except (OSError, ValueError) as error:
        damage = str(error).partition(", but must")[0]  # without the remedy: measured anew, it would not be what the trials so far had
        raise RunNotFoundError(f"{folder.hardware} is damaged ({damage}), but {_RULE}") from error

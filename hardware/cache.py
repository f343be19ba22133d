"""Profiles that were measured on this machine, kept for this user."""

from __future__ import annotations

import os
from pathlib import Path

from hardware.devices import Device
from hardware.profile import Profile, Progress
from hardware.profile.key import key_of


def cache_folder() -> Path:
    """Where profiles are kept for this user."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "grow" / "profiles"


def cached(devices: tuple[Device, ...], dtype: str = "float32") -> Path:
    """File of the profile of these devices."""
    return cache_folder() / f"{key_of(devices, dtype)}.json"


def obtain(
    devices: tuple[Device, ...],
    dtype: str = "float32",
    *,
    anew: bool = False,
    full: bool = False,
    progress: Progress = lambda message: None,
) -> Profile:
    """The cached profile of these devices, or a new one, which is then cached. ``full`` measures more sizes, which takes minutes."""
    path = cached(devices, dtype)
    if path.exists() and not anew and not full:
        try:
            found = Profile.load(path)
        except ValueError:
            progress("the cached profile is damaged or of another version")
        else:
            if found.key == path.stem:
                return found
    elif not anew and (stale := _stale(devices, dtype)) is not None:
        progress(f"the cached profile of {stale.made_at} is stale, since {stale.differences()[0]}")
    from hardware import sweep

    found = sweep.measure(devices, dtype, grid=sweep.FULL if full else sweep.QUICK, progress=progress)
    keep(found, progress)
    return found


def _stale(devices: tuple[Device, ...], dtype: str) -> Profile | None:
    """The last profile of these devices that no longer holds, if there is one."""
    found = []
    for path in cache_folder().glob("*.json"):
        try:
            profile = Profile.load(path)
        except ValueError:
            continue
        if profile.devices == devices and profile.dtype == dtype and profile.differences():
            found.append(profile)
    return max(found, key=lambda profile: profile.made_at, default=None)


def keep(profile: Profile, progress: Progress = lambda message: None) -> None:
    """Cache a profile of this machine."""
    try:
        profile.save(cached(profile.devices, profile.dtype))
    except OSError as error:
        progress(f"the profile cannot be cached: {error}")

"""Where a user's own things are, as the XDG base directory specification has it."""

import os
from pathlib import Path

from store.errors import InvalidName


def cache_home() -> Path:
    """Where what can be had again is kept: $XDG_CACHE_HOME/vaultway, usually below ~/.cache."""
    return _home("XDG_CACHE_HOME", ".cache") / "vaultway"


def config_home() -> Path:
    """Where the user's configuration is: $XDG_CONFIG_HOME/vaultway, usually below ~/.config."""
    return _home("XDG_CONFIG_HOME", ".config") / "vaultway"


def state_home() -> Path:
    """Where what must not be lost is kept: $XDG_STATE_HOME/vaultway, usually in ~/.local/state."""
    return _home("XDG_STATE_HOME", ".local/state") / "vaultway"


def _home(variable: str, below_home: str) -> Path:
    """A relative path in the variable counts as none, says the XDG specification."""
    place = os.environ.get(variable, "")
    if place.startswith("/"):
        return Path(place)
    try:
        return Path.home() / below_home
    except RuntimeError as error:
        raise InvalidName(f"no home directory: set {variable}") from error

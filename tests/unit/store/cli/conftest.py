"""The command line in this process: `vaultway(...)` returns what it printed and its exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from store.cli.main import main
from store.repositories import configuration

KEYS = Path(__file__).parents[3] / "golden/keys"
EXPECTED = Path(__file__).parents[3] / "golden/expected"


class Done(NamedTuple):
    """One command that ended."""

    code: int
    out: str
    err: str


Vaultway = Callable[..., Done]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the person who runs the tests: no variables, no default keys, no configuration."""
    import os

    for name in [name for name in os.environ if name.startswith(("PBS_", "VAULTWAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(configuration, "SYSTEM_FILE", tmp_path / "etc/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))


@pytest.fixture
def vaultway(capfd: pytest.CaptureFixture[str]) -> Vaultway:
    def run(*arguments: object) -> Done:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run

"""The handlers that pyfuse3 lacks: there with the C module, and not missed without it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fsgateway import extra_handlers


def test_without_the_module_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_handlers, "_module", None)
    assert not extra_handlers.set_handler("lseek", lambda *_: None)


def test_a_handler_that_does_not_exist() -> None:
    if extra_handlers._module is None:
        pytest.fail("the C module did not build: run scripts/setup")
    with pytest.raises(ValueError, match="no handler frob"):
        extra_handlers.set_handler("frob", None)


def test_it_is_loaded_before_pyfuse3() -> None:
    """Whatever of ours is imported first; else pyfuse3 would find libfuse's own function."""
    script = (
        "import sys, fsgateway.attributes; names = [*sys.modules]; "
        "print(names.index('fsgateway._fuse_extra') < names.index('pyfuse3'))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "True\n"

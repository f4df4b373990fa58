"""Every error has its three numbers, and the README tells users the same exit codes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import errors
from store.errors import BackendError, StoreError

README = Path(__file__).parent.parent.parent.parent / "README.md"


def classes(base: type[StoreError] = StoreError) -> Iterator[type[StoreError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


@pytest.mark.parametrize("error", list(classes()))
def test_numbers(error: type[StoreError]) -> None:
    assert 0 < error.errno < 200
    assert 400 <= error.http < 600
    assert error.exit_code == 1 or error.exit_code == 2 or 10 <= error.exit_code <= 17


@pytest.mark.parametrize("error", list(classes()))
def test_exit_code_is_documented(error: type[StoreError]) -> None:
    section = README.read_text().split("## Exit codes")[1].split("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert error.exit_code in documented


def test_retryable() -> None:
    assert not BackendError("x").retryable
    assert BackendError("x", retryable=True).retryable

"""A writable mount does what tmpfs does, call by call, for root and for others.

tests/posix says what is asked. What may differ is named here, with its reason.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.machine import scratch_parent
from tests.posix.cases import USERS
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

# O_TMPFILE: libfuse before 3.17 does not know the request, and the kernel says ENOTSUP.
MAY_DIFFER = (" open-unnamed ",)
USUAL = ("root", "own", "sticky", "foreign-thing")


@pytest.fixture(scope="module")
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


def told(directory: Path, *arguments: object) -> dict[str, object]:
    """What the calls did below a directory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.posix", directory, *map(str, arguments)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def compare(mount: WritableMount, *arguments: object) -> None:
    truth = Path(tempfile.mkdtemp(prefix="vaultway-test-", dir=scratch_parent()))
    truth.chmod(0o755)
    try:
        expected = told(truth, *arguments)
    finally:
        shutil.rmtree(truth)
    found = told(mount.tree, *arguments)
    different = {
        name: (outcome, found.get(name))
        for name, outcome in expected.items()
        if outcome != found.get(name) and not any(allowed in name for allowed in MAY_DIFFER)
    }
    assert len(expected) == len(found) > 100
    assert not different, json.dumps(different, indent=1)[:5000]


@pytest.mark.parametrize(
    "who",
    [who if who in USUAL else pytest.param(who, marks=pytest.mark.slow) for who in USERS],
)
def test_every_call_on_everything(mount: WritableMount, who: str) -> None:
    compare(mount, "calls", who, 1)


@pytest.mark.parametrize("who", ["root", "own", "sticky"])
def test_calls_on_two_things(mount: WritableMount, who: str, pytestconfig: pytest.Config) -> None:
    """Links and renames, all flags; an eleventh of them in an everyday run."""
    compare(mount, "pairs", who, 1 if pytestconfig.getoption("--all") else 11)


def test_stories(mount: WritableMount) -> None:
    compare(mount, "stories")


def test_nothing_was_logged(mount: WritableMount) -> None:
    """POSIX' everyday errors are no news for an administrator; comes last."""
    assert mount.log == ""

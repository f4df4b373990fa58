"""A writable mount beside a model: random calls, seals and mounts in the middle, kill -9."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import scratch_folder
from tests.machine import scratch_parent
from tests.posix.ground import picture
from tests.posix.one_file import IMAGES, MODES, OneFile
from tests.posix.walks import Walk
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [
    pytest.mark.needs("fuse", "root"),
    pytest.mark.xdist_group("writable"),
    pytest.mark.timeout(7200),  # with --all
]


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


@pytest.fixture
def truth() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vaultway-test-", dir=scratch_parent()))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    """How many times as long as usual."""
    return 50 if pytestconfig.getoption("--all") else 1


def sync(directory: Path) -> None:
    """fsync of one makes all durable; sync(2) does not ask a FUSE file system."""
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def whole(directory: Path) -> list[Any]:
    """Its picture, with all that is in the files: the walks make none larger."""
    return picture(os.fsencode(directory), 64 << 20)


def same(one: Path, other: Path) -> None:
    assert whole(one) == whole(other)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_calls(mount: WritableMount, truth: Path, seed: int, rounds: int) -> None:
    """Sealed with files open, mounted again, and at the end the snapshot is compared, too."""
    walk = Walk(seed, truth, mount.tree)
    for number in range(4 * rounds):
        walk.steps(300)
        same(truth, mount.tree)
        if number % 2:
            mount.seal()
        else:
            walk.close()
            mount.down()
            mount.up()
        same(truth, mount.tree)
    walk.steps(100)
    walk.close()
    snapshot = mount.seal()
    same(truth, mount.tree)
    same(truth, snapshot / "root.pxar")


@pytest.mark.parametrize("mode", MODES)
def test_one_file(mount: WritableMount, mode: str, rounds: int) -> None:
    """4,200 operations in each of the modes; 210,000 with --all, so more than a million."""
    path = mount.group / "current/file.img" if mode in IMAGES else mount.tree / "file"
    file = OneFile(path, 7 + MODES.index(mode), mode)
    for number in range(4 * rounds):
        file.steps(1050)
        if number % 4 == 1:
            mount.seal()
        elif number % 4 == 2:
            file.close()
            mount.down()
            mount.up()
            file.reopen()
    file.close()
    sealed = path.relative_to(mount.group / "current")
    assert (mount.seal() / sealed).read_bytes() == path.read_bytes()


def test_killed_in_random_calls(mount: WritableMount, truth: Path, rounds: int) -> None:
    """What was synced before a kill -9 is there; so is the state of that moment, or a later one."""
    for seed in range(3 * rounds):
        walk = Walk(seed, truth, mount.tree)
        walk.steps(200)
        walk.close()
        sync(mount.tree)
        expected = whole(truth)
        mount.kill()
        mount.up()
        assert whole(mount.tree) == expected
    same(truth, mount.seal() / "root.pxar")

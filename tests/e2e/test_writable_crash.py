"""kill -9 of a writable mount at seeded moments: what was fsynced is there, byte for byte."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.fakes.fsync_worker import content
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


Acknowledged = dict[str, tuple[int, int] | None]


def work_until_killed(
    mount: WritableMount, acknowledged: Acknowledged, seed: int, delay_s: float, *, sealing: bool
) -> None:
    """Adds what was acknowledged of each file; one that was under way is taken out."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.fsync_worker", mount.tree, str(seed)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout
    time.sleep(delay_s)
    sealer = None
    if sealing:
        sealer = subprocess.Popen(
            [sys.executable, "-c", SEAL, str(mount.vault), str(mount.heads)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay_s)
    mount.kill()
    told, _ = worker.communicate(timeout=60)
    if sealer is not None:
        sealer.wait(timeout=60)
    for line in told.splitlines():
        name, number, size = json.loads(line)
        if number == "begin":
            acknowledged.pop(name, None)
        else:
            acknowledged[name] = None if number is None else (number, size)


SEAL = """
import sys
from store.cli.main import main
vault, heads = sys.argv[1:]
sys.argv = ["vaultway", "head", "seal", "host/test", "--repository", vault, "--heads", heads]
sys.exit(main())
"""


def check(tree: Path, acknowledged: Acknowledged) -> None:
    for name, what in acknowledged.items():
        path = tree / name
        if what is None:
            assert not path.exists(), name
        else:
            assert path.read_bytes() == content(*what), name


def test_what_was_fsynced_is_there(mount: WritableMount, pytestconfig: pytest.Config) -> None:
    """Eight kills, some while a seal runs; 200 with --all. None may lose what others left."""
    chance = random.Random(11)
    acknowledged: Acknowledged = {}
    for number in range(200 if pytestconfig.getoption("--all") else 8):
        sealing = number % 3 == 2
        delay_s = chance.uniform(0.2, 1.2)
        work_until_killed(mount, acknowledged, number * 10_000, delay_s, sealing=sealing)
        began = time.monotonic()
        mount.up()
        first = mount.tree.stat()
        assert first.st_nlink >= 1
        assert time.monotonic() - began < 20  # a busy machine; alone it is under one
        check(mount.tree, acknowledged)
    snapshot = mount.seal()
    check(snapshot / "root.pxar", acknowledged)
    assert "Traceback" not in mount.log

"""What every test shares: the golden data, the source trees, probes of the machine, and the rule
about warnings."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import zstandard

from tests.machine import missing_parts, scratch_parent
from tests.program import run
from tests.s3_server import S3Server, running_ceph, running_server

GOLDEN = Path(__file__).parent / "golden"

hypothesis.settings.register_profile("vaultway", deadline=None, max_examples=50)
hypothesis.settings.load_profile("vaultway")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that begins us in the background says so, and the programs we begin would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="PARTS",
        help="fuse,nbd,qemu,fio,root,loop,s3,samba,ceph,lab,images,microvm: fail, not skip",
    )
    parser.addoption("--all", action="store_true", help="the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose part does not work here, or fail it if `--require` names the part."""
    required = set(item.config.getoption("--require").split(",")) - {""}
    for mark in item.iter_markers("needs"):
        for part, why in missing_parts(mark.args).items():
            if part in required:
                pytest.fail(f"{part} is required: {why}", pytrace=False)
            pytest.skip(f"{part}: {why}")


@pytest.fixture(autouse=True)
def no_unannounced_warnings(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A WARNING says "act soon": a test that provokes one says so with the mark
    `expect_warnings`."""
    yield
    if request.node.get_closest_marker("expect_warnings"):
        return
    records = caplog.get_records("setup") + caplog.get_records("call")
    unannounced = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    assert not unannounced, f"unannounced warnings: {unannounced}"


@contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Hold `folder`'s lock; yields True to the one process that has to fill it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a failed try left
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A scratch folder for what a whole run shares, whatever number of processes runs it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .tar.zst without its 65,000 empty chunk directories (a reader does not miss
    them)."""
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        tar.extraction_filter = lambda member, _path: member  # ours: owners and modes as they are
        for member in tar:
            if not (member.isdir() and Path(member.name).parent.name == ".chunks"):
                tar.extract(member, target)


@pytest.fixture(scope="session")
def golden(shared_folder: Path) -> Path:
    """READ ONLY: tests/golden with `datastore/` and `bucket/` unpacked beside keys/, expected/ and
    protocol/."""
    folder = shared_folder / "golden"
    with once(folder) as first:
        if first:
            shutil.copytree(GOLDEN, folder)
            unpack(GOLDEN / "datastore.tar.zst", folder / "datastore")
            unpack(GOLDEN / "bucket.tar.zst", folder / "bucket")
    return folder


@pytest.fixture
def golden_copy(golden: Path, scratch: Path) -> Path:
    """The golden datastore, for one test to write to; empty chunk directories are missing."""
    return shutil.copytree(golden / "datastore", scratch / "golden-copy", symlinks=True)


@contextmanager
def scratch_store() -> Iterator[Path]:
    """An empty datastore of the program's own making, in RAM where there is room: disks take
    seconds."""
    with scratch_folder() as folder:
        run("datastore", "create", folder / "store")
        yield folder / "store"


@contextmanager
def scratch_folder(*, xattrs: bool = False) -> Iterator[Path]:
    """A folder in RAM where there is room, and where `xattrs` can be set if they are needed."""
    folder = Path(tempfile.mkdtemp(prefix="vaultway-test-", dir=scratch_parent(xattrs=xattrs)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Such a folder, for 65,536 directories: a disk takes seconds to make and to remove them."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on loopback; `new_bucket` and `config` give each test a place of its own."""
    with scratch_folder() as folder, running_server(folder) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[S3Server]:
    """The same with a real Ceph behind it."""
    with scratch_folder() as folder, running_ceph(folder) as server:
        yield server


@pytest.fixture
def store() -> Iterator[Path]:
    """An empty datastore, for one test to write to."""
    with scratch_store() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_store() -> Iterator[Path]:
    """An empty datastore that the tests of one file share."""
    with scratch_store() as folder:
        yield folder


@pytest.fixture(scope="session")
def source_tree(shared_folder: Path) -> Callable[[int], Path]:
    """READ ONLY: `source_tree(2)` is a folder with `tree/` and `disk.raw` of revision 2, as the
    golden snapshots have them."""

    def make(revision: int) -> Path:
        if os.geteuid() != 0:
            pytest.fail(
                "only root can make the source trees: they have owners and devices", pytrace=False
            )
        folder = shared_folder / f"source-{revision}"
        with once(folder) as first:
            if first:
                for step in range(1, revision + 1):
                    subprocess.run(
                        [sys.executable, GOLDEN / "make-source.py", folder, str(step)], check=True
                    )
        return folder

    return make


@pytest.fixture(scope="session")
def vm_disk(shared_folder: Path) -> Path:
    """READ ONLY: a small bootable disk (raw, 128 MiB); its guest reads and checks all its files,
    and says so."""
    folder = shared_folder / "machine"
    with once(folder) as first:
        if first:
            make_vm = Path(__file__).parent.parent / "scripts/make-vm"
            subprocess.run([make_vm, folder, "16", "200", "128"], check=True, capture_output=True)
    return folder / "disk.raw"

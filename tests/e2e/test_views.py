"""`-o versions` as its users meet it: find, ls and cp over the past of a tree."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.names import Namespace, Snapshot
from tests.conftest import scratch_folder
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.program import mounted
from tests.s3_vault import LEGACY, METADATA, Vault, noise

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

FIRST, SECOND, THIRD = (f"2025-01-0{day}T03:04:05Z" for day in (1, 2, 3))
SOON_S = 3.0


def notes(content: bytes, mtime: int) -> SplitTree:
    tree = SplitTree()
    tree.file(b"notes.txt", content, stat(0o100644, mtime_s=mtime))
    return tree


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


@pytest.fixture
def history(datastore: Datastore) -> None:
    """Three days: a file changes, one is deleted, one comes, names are linked, modes tighten."""
    first = notes(b"one", 1)
    linked = first.encoder.last_offset
    first.file(b"old", b"deleted on the second day")
    first.add(first.encoder.hardlink(b"same.txt", linked, b"notes.txt"))
    first.enter(b"secret", stat(0o40700))
    first.file(b"plan", b"x")
    first.leave()
    second = notes(b"two!", 2)
    second.enter(b"secret", stat(0o40755))
    second.file(b"open", b"y")
    second.leave()
    third = notes(b"two!", 2)
    third.add(third.encoder.symlink(b"zlink", stat(0o120777), b"notes.txt"))
    for time_, tree in ((FIRST, first), (SECOND, second), (THIRD, third)):
        with snapshot(datastore, f"host/h/{time_}") as builder:
            builder.split_tree("root", tree)


def found(folder: Path) -> list[str]:
    """All paths, as find has them."""
    done = subprocess.run(
        ["find", ".", "-mindepth", "1"], cwd=folder, capture_output=True, text=True, check=True
    )
    return sorted(line.removeprefix("./") for line in done.stdout.splitlines())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.usefixtures("history")
class TestVersions:
    def test_everything_there_ever_was(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "store", tmp_path / "m", "-o", "versions") as mount:
            assert found(mount / "host/h/versions") == [
                "root.pxar",
                "root.pxar/notes.txt",
                f"root.pxar/notes.txt/{FIRST}.txt",
                f"root.pxar/notes.txt/{SECOND}.txt",
                "root.pxar/old",
                f"root.pxar/old/{FIRST}",
                "root.pxar/same.txt",
                f"root.pxar/same.txt/{FIRST}.txt",
                "root.pxar/secret",
                "root.pxar/secret/open",
                f"root.pxar/secret/open/{SECOND}",
                "root.pxar/secret/plan",
                f"root.pxar/secret/plan/{FIRST}",
                "root.pxar/zlink",
                f"root.pxar/zlink/{THIRD}",
            ]

    def test_a_version_is_copied(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "store", tmp_path / "m", "-o", "versions") as mount:
            root = mount / "host/h/versions/root.pxar"
            target = tmp_path / "copy"
            subprocess.run(["cp", "-a", root / f"notes.txt/{FIRST}.txt", target], check=True)
            assert (target.read_bytes(), int(target.stat().st_mtime)) == (b"one", 1)
            assert (root / f"old/{FIRST}").read_bytes() == b"deleted on the second day"
            assert (root / f"same.txt/{FIRST}.txt").read_bytes() == b"one"
            assert (root / f"same.txt/{FIRST}.txt").stat().st_nlink == 1
            assert (root / f"zlink/{THIRD}").readlink() == Path("notes.txt")
            subprocess.run(["cp", "-a", root, tmp_path / "all"], check=True)
            assert found(tmp_path / "all") == found(root)

    def test_inode_numbers_stay(self, tmp_path: Path) -> None:
        """Also when the kernel and we have to look again."""
        with mounted(tmp_path / "store", tmp_path / "m", "-o", "versions") as mount:
            root = mount / "host/h/versions/root.pxar"
            paths = [root, *(root / path for path in found(root))]
            before = [path.lstat().st_ino for path in paths]
            Path("/proc/sys/vm/drop_caches").write_text("2")
            assert [path.lstat().st_ino for path in paths] == before
            assert len(set(before)) == len(paths)

    def test_what_was_closed_stays_closed(self, tmp_path: Path) -> None:
        with (
            scratch_folder() as folder,
            mounted(tmp_path / "store", folder / "m", "-o", "versions,allow_other") as mount,
        ):
            folder.chmod(0o755)
            root = mount / "host/h/versions/root.pxar"
            assert (root / "secret").stat().st_mode == 0o40700
            nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
            done = subprocess.run(
                [*nobody, "ls", root / "secret"], capture_output=True, check=False
            )
            assert b"Permission denied" in done.stderr
            done = subprocess.run(
                [*nobody, "cat", root / f"notes.txt/{SECOND}.txt"], capture_output=True, check=True
            )
            assert done.stdout == b"two!"

    def test_new_snapshots_appear(self, datastore: Datastore, tmp_path: Path) -> None:
        fourth, fifth = "2025-01-04T03:04:05Z", "2025-01-05T03:04:05Z"
        with mounted(tmp_path / "store", tmp_path / "m", "-o", "versions") as mount:
            file = mount / "host/h/versions/root.pxar/notes.txt"
            assert sorted(os.listdir(file)) == [f"{FIRST}.txt", f"{SECOND}.txt"]
            descriptor = os.open(file / f"{FIRST}.txt", os.O_RDONLY)
            with snapshot(datastore, f"host/h/{fourth}") as builder:
                builder.split_tree("root", notes(b"four", 4))
            wait_until(lambda: f"{fourth}.txt" in os.listdir(file))
            with snapshot(datastore, f"host/h/{fifth}") as builder:
                builder.split_tree("new", notes(b"five", 5))
            wait_until(lambda: (mount / "host/h/versions/new.pxar").exists())
            datastore.forget_snapshot(Namespace(), Snapshot.parse(f"host/h/{FIRST}"))
            wait_until(lambda: f"{FIRST}.txt" not in os.listdir(file))
            assert os.pread(descriptor, 10, 0) == b"one"
            os.close(descriptor)
            assert not (mount / f"host/h/versions/root.pxar/old/{FIRST}").exists()


def test_what_cannot_be_read_is_left_out(datastore: Datastore, tmp_path: Path) -> None:
    """One without its key, one with a damaged chunk: a line for each in the log."""
    key = CryptConfig(bytes(32))
    for day, used in ((FIRST, None), (SECOND, key), (THIRD, None)):
        with snapshot(datastore, f"host/h/{day}", used) as builder:
            builder.split_tree("root", notes(day.encode(), int(day[8:10])))
    index = datastore.dynamic_index(
        Namespace(), Snapshot.parse(f"host/h/{THIRD}"), "root.mpxar.didx"
    )
    digest = index.digest(0).hex()
    (tmp_path / "store/.chunks" / digest[:4] / digest).write_bytes(b"rubbish" * 10)
    log = tmp_path / "log"
    options = ("-o", "versions,shadow-copy", "--log", log)
    with mounted(tmp_path / "store", tmp_path / "m", *options) as mount:
        group = mount / "host/h"
        for _ in range(2):
            assert os.listdir(group / "versions/root.pxar/notes.txt") == [f"{FIRST}.txt"]
            assert os.listdir(group / "shadow/root.pxar") == ["@GMT-2025.01.01-03.04.05"]
            Path("/proc/sys/vm/drop_caches").write_text("2")
        assert sorted(os.listdir(group)) == [FIRST, SECOND, THIRD, "latest", "shadow", "versions"]
    lines = [line for line in log.read_text().splitlines() if "left out" in line]
    assert len(lines) == 2, lines
    assert str(key.fingerprint) in "".join(lines)
    assert digest in "".join(lines)


@pytest.mark.needs("s3")
def test_from_a_bucket_in_every_format(vault: Vault, tmp_path: Path) -> None:
    """Trees in one stream and in two, of real backups."""
    changing = vault.source / "a/3"
    contents = []
    for day, mode in enumerate((LEGACY, METADATA, LEGACY, METADATA, METADATA), 1):
        changing.write_bytes(b"day %d" % day)
        contents.append(changing.read_bytes())
        if day == 2:
            (vault.source / "a/7").unlink()
        vault.back_up(mode, day)
    with mounted(vault.repository, tmp_path / "m", "-o", "versions", env=vault.env) as mount:
        root = mount / "host/web01/versions/root.pxar"
        assert len(os.listdir(root / "a")) == 22
        versions = sorted((root / "a/3").iterdir())
        assert [version.read_bytes() for version in versions] == contents
        (gone,) = (root / "a/7").iterdir()
        assert gone.read_bytes() == noise(7, 100_000)
        (hard,) = (root / "a/b/hard").iterdir()
        assert hard.read_bytes() == noise(1, 100_000)

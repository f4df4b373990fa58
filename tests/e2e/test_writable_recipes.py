"""What people do with a writable mount: rsync, tar, cp, editors, git, SQLite."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.program import run
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

PATTERN = b"find-me-if-you-can-" * 40
FILE_NAME = "a-name-that-nobody-may-read.txt"


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


def call(*words: object, **named: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **named
    )  # type: ignore[call-overload] # what subprocess.run takes
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return str(done.stdout)


def stored_bytes(vault: Path) -> int:
    """Of chunks."""
    return sum(
        os.lstat(os.path.join(path, name)).st_size
        for path, _, names in os.walk(vault / ".chunks")
        for name in names
    )


def make_source(folder: Path, count: int) -> None:
    """Small files with all that rsync knows."""
    chance = random.Random(1)
    for number in range(count):
        directory = folder / f"d{number % 50}"
        directory.mkdir(exist_ok=True, parents=True)
        path = directory / f"f{number}"
        path.write_bytes(chance.randbytes(chance.randrange(6000)))
        os.utime(path, ns=(0, chance.randrange(1 << 60)))
    first = folder / "d0"
    os.link(first / "f0", first / "link")
    os.symlink("f0", first / "symlink")
    os.setxattr(first / "f0", "user.note", b"x")
    call("setfacl", "-m", "u:1234:r", first / "f50")
    os.chown(first / "f50", 12, 34)
    os.mkfifo(first / "fifo")


def rsync(source: Path, target: Path) -> dict[str, int]:
    """The numbers of --stats."""
    told = call("rsync", "-aHAX", "--delete", "--stats", f"{source}/", f"{target}/")
    return {
        name.strip(): int(value.split()[0].replace(",", ""))
        for name, _, value in (line.partition(":") for line in told.splitlines())
        if value.split() and value.split()[0].replace(",", "").isdigit()
    }


def test_rsync_costs_what_changed(
    mount: WritableMount, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """5,000 files; 50,000 with --all."""
    count = 50_000 if pytestconfig.getoption("--all") else 5_000
    source = tmp_path / "source"
    make_source(source, count)
    rsync(source, mount.tree)
    mount.seal()
    first = stored_bytes(mount.vault)
    changed, chance = 0, random.Random(2)
    for number in range(0, count, 100):
        path = source / f"d{number % 50}/f{number}"
        data = chance.randbytes(chance.randrange(1, 6000))
        path.write_bytes(data)
        changed += len(data)
    sent = rsync(source, mount.tree)
    snapshot = mount.seal()
    assert sent["Number of regular files transferred"] <= count // 100 + 2
    assert sent["Literal data"] <= 3 * changed
    indexes = 64 * 1024 + 200 * count  # the tree's names and modes, as the format has them: whole
    assert stored_bytes(mount.vault) - first <= 3 * changed + indexes
    check = ("rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes")
    assert call(*check, f"{source}/", f"{snapshot}/root.pxar/") == ""
    before = stored_bytes(mount.vault)
    call("chmod", "-R", "g-r", mount.tree)
    mount.seal()
    assert stored_bytes(mount.vault) - before <= indexes


def test_nothing_can_be_read_on_disk(tmp_path: Path) -> None:
    """With a key: neither a known pattern nor a known name, in journal, cache or datastore."""
    key = tmp_path / "key.json"
    run("key", "create", key, "--kdf", "none")
    with scratch_folder() as folder:
        run("datastore", "create", folder / "vault")
        mount = WritableMount(folder, f"seal=manual,cache={folder / 'cache'}", ("--keyfile", key))
        try:
            mount.up()
            mount.make_tree()
            (mount.tree / FILE_NAME).write_bytes(PATTERN * 500)
            os.setxattr(mount.tree / FILE_NAME, "user.secret", PATTERN)
            os.symlink(PATTERN[:200], mount.tree / "link")
            (mount.group / "current/vm.conf").write_bytes(PATTERN)
            (mount.group / "current/disk.img").write_bytes(PATTERN * 2000)
            descriptor = os.open(mount.tree, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            assert not found_below(folder, mount.mountpoint)
            snapshot = mount.seal()
            assert (snapshot / "root.pxar" / FILE_NAME).read_bytes() == PATTERN * 500
            assert (snapshot / "disk.img").read_bytes()[: len(PATTERN)] == PATTERN
            assert not found_below(folder, mount.mountpoint)
        finally:
            mount.end()
        assert not found_below(folder, mount.mountpoint)


def found_below(folder: Path, mountpoint: Path) -> list[Path]:
    """Raw files that have what they may not have."""
    return [
        path
        for path in folder.rglob("*")
        if mountpoint not in path.parents and path.is_file()
        if PATTERN[:19] in (raw := path.read_bytes()) or FILE_NAME.encode() in raw
    ]


def test_editors_and_blobs(mount: WritableMount) -> None:
    """Save by rename, in `current/` and in a tree; an archive goes by rm -r, and another name."""
    current = mount.group / "current"
    (current / "vm.conf").write_text("one")
    (current / "new.conf").write_text("two")
    (current / "new.conf").rename(current / "vm.conf")
    assert (current / "vm.conf").read_text() == "two"
    assert sorted(os.listdir(current)) == ["root.pxar", "vm.conf"]
    (mount.tree / "file").write_text("kept")
    shutil.copytree(mount.tree, current / "copy.pxar")
    call("rm", "-r", current / "copy.pxar")
    call("mv", mount.tree, current / "old.pxar")
    assert (current / "old.pxar/file").read_text() == "kept"
    assert sorted(os.listdir(current)) == ["old.pxar", "vm.conf"]
    snapshot = mount.seal()
    assert (snapshot / "vm.conf").read_text() == "two"
    assert (snapshot / "old.pxar/file").read_text() == "kept"


def test_tar_git_and_sqlite(mount: WritableMount, tmp_path: Path) -> None:
    """They run there, and find no fault with what they wrote, before and after a seal."""
    tree = mount.tree
    call("tar", "cf", tmp_path / "linux.tar", "-C", "/usr/include", "linux")
    call("tar", "xf", tmp_path / "linux.tar", "-C", tree)
    call("diff", "-r", "/usr/include/linux", tree / "linux")
    source = tmp_path / "source"
    source.mkdir()
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    call("git", "init", "-q", source)
    for number in range(20):
        (source / f"file{number}").write_text("text\n" * number)
        call("git", "-C", source, "add", ".")
        call("git", *identity, "-C", source, "commit", "-qm", f"change {number}")
    call("git", "clone", "-q", source, tree / "clone")
    call("git", "-C", tree / "clone", "gc", "-q")
    call("git", "-C", tree / "clone", "fsck", "--strict")
    assert call("git", "-C", tree / "clone", "status", "--porcelain") == ""
    _use_sqlite(tree / "data.sqlite")
    snapshot = mount.seal()
    _use_sqlite(tree / "data.sqlite")
    call("diff", "-r", "/usr/include/linux", snapshot / "root.pxar/linux")


def _use_sqlite(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    connection.execute("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b BLOB)")
    other = sqlite3.connect(path)
    for number in range(200):
        with connection:
            connection.execute("INSERT INTO t (b) VALUES (?)", (os.urandom(500),))
        if number % 50 == 0:
            assert other.execute("SELECT count(*) FROM t").fetchone()[0] > number
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    other.close()
    connection.close()


def test_the_real_thing_is_a_snapshot(mount: WritableMount) -> None:
    """`restore` takes it as any other."""
    (mount.tree / "file").write_bytes(b"content" * 1000)
    mount.seal()
    target = mount.folder / "restored"
    run("restore", "host/test", "root.pxar", target, "--repository", mount.vault)
    assert (target / "file").read_bytes() == b"content" * 1000


def test_a_disk_is_copied_with_its_attributes(tmp_path: Path) -> None:
    """`cp -a` wants to set an ACL, and takes that there are none."""
    with scratch_folder() as folder, writable_mount(folder) as mount:
        mount.group.mkdir()
        for name in ("drive.img", "vm.conf"):
            (tmp_path / name).write_bytes(os.urandom(3 * 4096))
            subprocess.run(["cp", "-a", tmp_path / name, mount.group / "current"], check=True)
            there = mount.group / "current" / name
            assert there.read_bytes() == (tmp_path / name).read_bytes()

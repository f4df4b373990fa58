"""Programs that are hard on a file system: PostgreSQL, stress-ng, fio. With --all only."""

import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.program import run
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("fuse", "root"),
    pytest.mark.xdist_group("writable"),
]

STRESSORS = (
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep",
    "dirmany", "dup", "fallocate", "fcntl", "fiemap", "filename", "flock", "fpunch", "fstat",
    "getdent", "handle", "hdd", "iomix", "lease", "link", "locka", "lockf", "lockofd", "mknod",
    "mmap", "open", "readahead", "rename", "revio", "seek", "sendfile", "splice", "symlink",
    "sync-file", "touch", "utime", "xattr",
)  # fmt: skip


@pytest.fixture(scope="module")
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


def call(*words: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout + done.stderr


@pytest.mark.parametrize("stressor", STRESSORS)
def test_stress_ng(mount: WritableMount, stressor: str) -> None:
    folder = mount.tree / f"stress-{stressor}"
    folder.mkdir(mode=0o777)
    call("stress-ng", "--temp-path", folder, f"--{stressor}", 2, "--verify", "--timeout", 5)


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio"])
def test_fio(mount: WritableMount, engine: str) -> None:
    for path in (mount.tree / f"fio-{engine}", mount.group / f"current/{engine}.img"):
        if engine == "mmap" and path.suffix == ".img":
            continue  # an image is not kept in the page cache: NBD may write to it, too
        call(
            "fio", "--name=v", f"--filename={path}", "--size=64m", "--rw=randrw", "--bs=4k",
            f"--ioengine={engine}", "--iodepth=8", f"--direct={int(engine == 'libaio')}",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
        )  # fmt: skip


def test_postgresql(mount: WritableMount) -> None:
    """initdb, pgbench, a seal in the middle, an immediate stop, and what it says of its tables."""
    user = pwd.getpwnam("postgres")
    binaries = max(Path("/usr/lib/postgresql").iterdir()) / "bin"
    data, socket = mount.tree / "pg", mount.folder / "socket"
    for folder in (data, socket):
        folder.mkdir(mode=0o700)
        call("chown", "postgres:", folder)

    def postgres(program: str, *words: object) -> str:
        identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
        return call("setpriv", *identity, binaries / program, *words, cwd=Path("/"))

    def control(*words: object) -> None:
        options = f"-k {socket} -p 54999 -c listen_addresses="
        postgres("pg_ctl", "-D", data, "-o", options, "-w", "-l", socket / "log", *words)

    there = ("-h", socket, "-p", 54999)
    postgres("initdb", "-D", data, "--data-checksums")
    control("start")
    try:
        postgres("pgbench", *there, "-i", "-s", 3, "postgres")
        told = postgres("pgbench", *there, "-c", 4, "-T", 10, "postgres")
        assert "failed transactions: 0" in told
        mount.seal()
        postgres("pgbench", *there, "-c", 4, "-T", 5, "postgres")
        query = "SELECT sum(abalance) - (SELECT sum(bbalance) FROM pgbench_branches)"
        ask = ("-Atc", f"{query} FROM pgbench_accounts", "postgres")
        assert postgres("psql", *there, *ask).strip() == "0"
        control("-m", "immediate", "stop")
        control("start")
        assert postgres("psql", *there, *ask).strip() == "0"
    finally:
        control("-m", "fast", "stop")
    postgres("pg_checksums", "-D", data, "--check")


def test_a_clock_that_jumps(mount: WritableMount) -> None:
    """A snapshot that is dated ahead: the next seal is later than it, and loses nothing."""
    ahead = int(time.time()) + 86_400
    source = mount.folder / "source"
    source.mkdir()
    (source / "file").write_text("ahead")
    group = mount.mountpoint / "host/clock"
    group.mkdir()
    tree = group / "current/root.pxar"
    tree.mkdir()
    (tree / "file").write_text("ours")
    arguments = ("--repository", mount.vault, "--backup-id", "clock", "--backup-time", ahead)
    run("backup", f"root.pxar:{source}", *arguments)
    name = mount.head("seal", "host/clock").split()[-1]
    newest = sorted(path.name for path in (mount.vault / "host/clock").iterdir() if path.is_dir())
    assert name.endswith(newest[-1])
    assert (tree / "file").read_text() == "ours"

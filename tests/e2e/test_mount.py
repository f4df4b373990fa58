"""The mount as its users meet it: what is in it, what damage does, how it starts and ends."""

import ctypes
import errno
import mmap
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.format.keys import create_key_file
from store.format.pxar.acl import Acl
from store.format.pxar.entries import Metadata, encode_metadata
from store.names import Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.machine import LEAVE_OTHERS_MOUNTS
from tests.program import environment, error_line, mounted, run, started

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

MIB = 1 << 20
CACHESTAT = 451  # a system call that libc does not have: Linux 6.5
TIME = "2025-01-01T00:00:00Z"
LATER = "2025-01-02T00:00:00Z"
KEY = CryptConfig(bytes(range(32)))
OTHER_KEY = CryptConfig(bytes(32))


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def write_key(path: Path, key: CryptConfig) -> Path:
    now = "2025-01-01T00:00:00+00:00"
    path.write_bytes(create_key_file(key.key, None, None, bytes(16), now).encode())
    return path


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


@pytest.fixture
def repository(datastore: Datastore, tmp_path: Path) -> Path:
    return tmp_path / "store"


def chunk_path(repository: Path, datastore: Datastore, what: str, file: str, number: int) -> Path:
    """Where one chunk of an archive is."""
    kind = datastore.fixed_index if file.endswith(".fidx") else datastore.dynamic_index
    digest = kind(Namespace(), Snapshot.parse(what), file).digest(number).hex()
    return repository / ".chunks" / digest[:4] / digest


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)


def kernel_version() -> tuple[int, ...]:
    return tuple(map(int, os.uname().release.split("-")[0].split(".")))


def kept_pages(path: Path) -> int:
    """How many pages of a file the kernel has in its cache. (To map it, as fincore does, empties
    that.)"""
    kernel = ctypes.CDLL(None, use_errno=True)
    everything, found = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        assert kernel.syscall(CACHESTAT, file.fileno(), everything, found, 0) == 0
    return found[0]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def bad_bytes(path: Path, positions: list[int]) -> list[int]:
    """Those of `positions` that cannot be read, one byte at a time."""
    bad = []
    with path.open("rb", buffering=0) as file:
        for position in positions:
            try:
                os.pread(file.fileno(), 1, position)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                bad.append(position)
    return bad


class TestContent:
    def test_random_reads_by_many_readers(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """Odd offsets and sizes, eight readers, a cache of less than half the data."""
        image, content = noise(1, 42 * MIB + 512), noise(2, 33 * MIB + 77)
        tree = SplitTree()
        tree.file(b"small", b"x" * 100)
        tree.file(b"tail", content)
        with snapshot(datastore, f"vm/1/{TIME}", KEY) as builder:
            builder.image("disk.img", image)
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree, chunk=3 * MIB + 11)
        key = write_key(tmp_path / "key.json", KEY)

        def read(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                path, truth = rng.choice(pairs)
                offset = rng.randrange(len(truth) + 10)
                size = rng.choice((1, 511, 4096, 131_073, 3 * MIB))
                with path.open("rb", buffering=0) as file:
                    found = os.pread(file.fileno(), size, offset)
                assert found == truth[offset : offset + size], (path, offset, size)

        with mounted(repository, tmp_path / "m", "--keyfile", key, "-o", "memory=32M") as mount:
            pairs = [
                (mount / "vm/1/latest/disk.img", image),
                (mount / "host/h/latest/root.pxar/tail", content),
            ]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(read, range(8)))
            for path, truth in pairs:
                assert path.read_bytes() == truth

    @pytest.mark.parametrize("options", ["noatime", "kernel_cache"])
    def test_a_large_disk_is_kept_by_the_kernel_only_if_asked(
        self, datastore: Datastore, repository: Path, tmp_path: Path, options: str
    ) -> None:
        """Read, mapped both ways and sent, it is the same; pages are there of what was mapped."""
        if kernel_version() < (6, 6):
            pytest.skip("this kernel maps only what it caches: all of it goes through its cache")
        image = noise(7, 11 * MIB + 1) * 7
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.image("disk.img", image)
        with mounted(repository, tmp_path / "m", "-o", options) as mount:
            path = mount / "vm/1/latest/disk.img"
            assert path.read_bytes() == image
            assert (kept_pages(path) > 0) == (options == "kernel_cache")
            with path.open("rb") as file:
                for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                    with mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as mapped:
                        assert mapped[8 * MIB : 30 * MIB] == image[8 * MIB : 30 * MIB]
                        assert mapped[-4097:] == image[-4097:]
                assert kept_pages(path) > 0
                assert os.pread(file.fileno(), 100, len(image) - 10) == image[-10:]
                assert os.pread(file.fileno(), 100, len(image)) == b""
            shutil.copyfile(path, tmp_path / "copy")  # by sendfile
            assert (tmp_path / "copy").read_bytes() == image

    def test_new_snapshots_appear_and_forgotten_ones_vanish(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"one")
        with mounted(repository, tmp_path / "m") as mount:
            group = mount / "vm/1"
            assert (group / "latest/a.conf").read_bytes() == b"one"
            with snapshot(datastore, f"vm/1/{LATER}") as builder:
                builder.blob("a.conf", b"two")
            wait_until(lambda: str((group / "latest").readlink()) == LATER)
            wait_until(lambda: (group / "latest/a.conf").read_bytes() == b"two")
            datastore.forget_snapshot(Namespace(), Snapshot.parse(f"vm/1/{TIME}"))
            wait_until(lambda: names(group) == [LATER, "latest"])
            wait_until(lambda: not (group / TIME).exists())
            datastore.create_namespace(Namespace(("later",)))
            wait_until(lambda: (mount / "ns/later").is_dir())

    def test_hard_links_survive_a_copy(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """`cp -a` sees at the first name that there are more."""
        tree = SplitTree()
        tree.file(b"first", b"content")
        target = tree.encoder.last_offset
        tree.enter(b"sub")
        tree.add(tree.encoder.hardlink(b"second", target, b"first"))
        tree.leave()
        tree.add(tree.encoder.hardlink(b"third", target, b"first"))
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
        with mounted(repository, tmp_path / "m") as mount:
            root = mount / "host/h/latest/root.pxar"
            assert [(root / name).stat().st_nlink for name in ("first", "sub/second", "third")] == [
                3
            ] * 3
            subprocess.run(["cp", "-a", root, tmp_path / "copy"], check=True)
        copied = [(tmp_path / "copy" / name).stat() for name in ("first", "sub/second", "third")]
        assert len({info.st_ino for info in copied}) == 1

    def test_inode_numbers_stay(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        tree = SplitTree()
        tree.enter(b"d")
        tree.file(b"f", b"1")
        tree.leave()
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
            builder.blob("a.conf", b"x")
        with mounted(repository, tmp_path / "m") as mount:
            top = mount / "host/h" / TIME
            paths = [
                mount,
                mount / "host",
                top,
                top / "a.conf",
                top / "root.pxar/d",
                top / "root.pxar/d/f",
            ]
            before = [path.stat().st_ino for path in paths]
            Path("/proc/sys/vm/drop_caches").write_text("2")
            assert [path.stat().st_ino for path in paths] == before
            assert len(set(before)) == len(paths)

    def test_statfs_and_type(self, datastore: Datastore, repository: Path, tmp_path: Path) -> None:
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        with mounted(repository, tmp_path / "m") as mount:
            shown, real = os.statvfs(mount), os.statvfs(repository)
            total = real.f_blocks * real.f_frsize
            assert abs(shown.f_blocks * shown.f_frsize - total) < 4096
            line = next(x for x in Path("/proc/mounts").read_text().splitlines() if str(mount) in x)
            assert line.split()[:4][2] == "fuse.vaultway"
            assert line.split()[0] == str(repository)
            assert "ro" in line.split()[3].split(",")
            with pytest.raises(OSError, match="Read-only"):
                (mount / "vm/1/latest/a.conf").write_bytes(b"")

    def test_large_directory(self, datastore: Datastore, repository: Path, tmp_path: Path) -> None:
        """A hundred thousand entries: a matter of seconds, even here, and not of memory."""
        tree = SplitTree()
        for number in range(100_000):
            tree.file(b"file-%06d" % number, b"")
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
        with mounted(repository, tmp_path / "m") as mount:
            start = time.monotonic()
            found = names(mount / "host/h/latest/root.pxar")
            took = time.monotonic() - start
            assert len(set(found)) == 100_000
            assert took < 20
            pid = os.getxattr(mount, "user.vaultway.pid").decode()
            status = Path(f"/proc/{pid}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            assert int(resident.split()[1]) < 300 * 1024


class TestProtection:
    def test_modes_and_acls_protect_with_allow_other(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """What the backup says holds for other users; images are the owner's only."""
        nobody = pwd.getpwnam("nobody").pw_uid
        tree = SplitTree()
        shared = Metadata(0o100640, acl=Acl(users=((nobody, 4),), group_obj=0))
        tree.file(b"by-acl", b"shared", encode_metadata(shared))
        tree.file(b"closed", b"secret", stat(0o100640))
        tree.file(b"open", b"hello", stat(0o100644))
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
            builder.image("disk.img", bytes(4096))
        open_the_way(tmp_path)
        with mounted(repository, tmp_path / "m", "-o", "allow_other") as mount:
            top = mount / "host/h/latest"
            assert as_nobody("cat", top / "root.pxar/open") == b"hello"
            assert as_nobody("cat", top / "root.pxar/by-acl") == b"shared"
            for secret in ("root.pxar/closed", "disk.img"):
                with pytest.raises(subprocess.CalledProcessError, match="status 1"):
                    as_nobody("cat", top / secret)

    def test_others_stay_out_without_allow_other(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        tmp_path.chmod(0o755)
        with (
            mounted(repository, tmp_path / "m") as mount,
            pytest.raises(subprocess.CalledProcessError),
        ):
            as_nobody("ls", mount)

    def test_owner_options(self, datastore: Datastore, repository: Path, tmp_path: Path) -> None:
        tree = SplitTree()
        tree.file(b"f", b"x", stat(0o100666, uid=5, gid=6))
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
        with mounted(repository, tmp_path / "m", "-o", "uid=1234,gid=4321,umask=022") as mount:
            info = (mount / "host/h/latest/root.pxar/f").stat()
            assert (info.st_uid, info.st_gid, info.st_mode) == (1234, 4321, 0o100644)

    @pytest.mark.parametrize("with_key", [False, True])
    def test_the_log_names_the_key(
        self, datastore: Datastore, repository: Path, tmp_path: Path, with_key: bool
    ) -> None:
        """Without the key, or with another one: listed, EACCES, and one line however often."""
        with snapshot(datastore, f"vm/1/{TIME}", KEY) as builder:
            builder.image("disk.img", noise(1, 5 * MIB))
            builder.blob("a.conf", b"x")
        with snapshot(datastore, f"vm/2/{TIME}") as builder:
            builder.blob("a.conf", b"plain")
        other = write_key(tmp_path / "other.json", OTHER_KEY)
        log = tmp_path / "log"
        options = ["--keyfile", other] if with_key else []
        with mounted(repository, tmp_path / "m", "--log", log, *options) as mount:
            image = mount / "vm/1/latest/disk.img"
            assert image.stat().st_size == 5 * MIB
            listed = ["a.conf", "disk.img", "disk.img.d", "index.json"]
            assert names(mount / "vm/1/latest") == listed
            assert b"disk.img.fidx" in (mount / "vm/1/latest/index.json").read_bytes()
            for path in (image, mount / "vm/1/latest/a.conf") * 5:
                with pytest.raises(PermissionError):
                    path.read_bytes()
            assert (mount / "vm/2/latest/a.conf").read_bytes() == b"plain"
        lines = [line for line in log.read_text().splitlines() if str(KEY.fingerprint) in line]
        assert 1 <= len(lines) <= 2
        assert all((str(OTHER_KEY.fingerprint) in line) == with_key for line in lines)


class TestDamage:
    def test_a_damaged_chunk_of_an_image(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """EIO for its own bytes, all others are right, also right beside it."""
        image = noise(3, 20 * MIB)
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.image("disk.img", image)
        flip(chunk_path(repository, datastore, f"vm/1/{TIME}", "disk.img.fidx", 1))
        chunk_path(repository, datastore, f"vm/1/{TIME}", "disk.img.fidx", 3).unlink()
        with mounted(repository, tmp_path / "m", "--log", tmp_path / "log") as mount:
            path = mount / "vm/1/latest/disk.img"
            with pytest.raises(OSError, match="Input/output"):
                path.read_bytes()
            edges = [at * 4 * MIB + by for at in range(5) for by in (0, 1, 2 * MIB, 4 * MIB - 1)]
            assert bad_bytes(path, edges) == [at for at in edges if at // (4 * MIB) in (1, 3)]
            with path.open("rb", buffering=0) as file:
                for start in (0, 8 * MIB, 16 * MIB):
                    assert os.pread(file.fileno(), 4 * MIB, start) == image[start : start + 4 * MIB]
        assert "disk.img.fidx" in (tmp_path / "log").read_text()

    def test_a_damaged_chunk_of_a_large_disk(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """Whoever reads into it gets what lies before."""
        image = noise(3, 12 * MIB) + bytes(64 * MIB)
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.image("disk.img", image)
        flip(chunk_path(repository, datastore, f"vm/1/{TIME}", "disk.img.fidx", 1))
        with mounted(repository, tmp_path / "m", "--log", tmp_path / "log") as mount:
            path = mount / "vm/1/latest/disk.img"
            with path.open("rb", buffering=0) as file:
                start = 4 * MIB - 5000
                assert os.pread(file.fileno(), 64 << 10, start) == image[start : 4 * MIB]
                with pytest.raises(OSError, match="Input/output"):
                    os.pread(file.fileno(), 10, 8 * MIB - 10)
                assert os.pread(file.fileno(), 3 * MIB, 8 * MIB) == image[8 * MIB : 11 * MIB]

    @pytest.mark.parametrize("size", [20 * MIB, 76 * MIB])
    def test_a_damaged_chunk_does_not_end_a_disk(
        self, datastore: Datastore, repository: Path, tmp_path: Path, size: int
    ) -> None:
        """However it is read, also by maps and sendfile: a short answer would do that."""
        image = noise(3, 12 * MIB) + bytes(size - 12 * MIB)
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.image("disk.img", image)
        flip(chunk_path(repository, datastore, f"vm/1/{TIME}", "disk.img.fidx", 1))
        before = 4 * MIB - 8192
        with mounted(repository, tmp_path / "m") as mount:
            path = mount / "vm/1/latest/disk.img"
            for _ in range(2):  # that it is damaged is known the second time
                with pytest.raises(OSError, match="Input/output"):
                    shutil.copyfile(path, tmp_path / "copy")
                assert path.stat().st_size == size
                with path.open("rb", buffering=0) as file:
                    private = mmap.MAP_PRIVATE
                    with mmap.mmap(file.fileno(), 0, private, mmap.PROT_READ) as mapped:
                        assert mapped[before : 4 * MIB] == image[before : 4 * MIB]
                        assert path.stat().st_size == size  # else what follows is SIGBUS
                        assert mapped[8 * MIB : 9 * MIB] == image[8 * MIB : 9 * MIB]

    def test_a_damaged_chunk_of_a_tree(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """At first whole pages are lost with it; opened again, nothing but its bytes."""
        content = noise(4, 3 * MIB)
        tree = SplitTree()
        tree.file(b"a-file", b"b" * 10)
        start = tree.file(b"hit", content)
        tree.file(b"z-file", b"a" * 10)
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree, chunk=MIB)
        flip(chunk_path(repository, datastore, f"host/h/{TIME}", "root.ppxar.didx", 1))
        lost = range(MIB - start, 2 * MIB - start)
        with mounted(repository, tmp_path / "m", "--log", tmp_path / "log") as mount:
            root = mount / "host/h/latest/root.pxar"
            with pytest.raises(OSError, match="Input/output"):
                (root / "hit").read_bytes()
            edges = [
                0,
                lost[0] - 1,
                lost[0],
                lost[0] + 1,
                lost[-1] - 1,
                lost[-1],
                lost[-1] + 1,
                3 * MIB - 1,
            ]
            assert bad_bytes(root / "hit", edges) == [at for at in edges if at in lost]
            with (root / "hit").open("rb", buffering=0) as file:
                assert os.pread(file.fileno(), MIB, lost[-1] + 1) == content[lost[-1] + 1 :][:MIB]
                assert os.pread(file.fileno(), 2 * MIB, 0) == content[: lost[0]]
            for _ in range(2):  # by sendfile, so through the kernel's cache
                with pytest.raises(OSError, match="Input/output"):
                    shutil.copyfile(root / "hit", tmp_path / "copy")
            assert (root / "a-file").read_bytes() == b"b" * 10
            assert (root / "z-file").read_bytes() == b"a" * 10
            assert (root / "hit").stat().st_size == len(content)

    def test_a_damaged_manifest_and_index(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        for name in ("vm/1", "vm/2", "vm/3"):
            with snapshot(datastore, f"{name}/{TIME}") as builder:
                builder.image("disk.img", bytes(5 * MIB))
        flip(repository / f"vm/1/{TIME}/index.json.blob")
        os.truncate(repository / f"vm/2/{TIME}/disk.img.fidx", 4096 + 40)
        with mounted(repository, tmp_path / "m", "--log", tmp_path / "log") as mount:
            with pytest.raises(OSError, match="Input/output"):
                names(mount / "vm/1/latest")
            assert (mount / "vm/2/latest/disk.img").stat().st_size == 5 * MIB
            with pytest.raises(OSError, match="Input/output"):
                (mount / "vm/2/latest/disk.img").read_bytes()
            assert (mount / "vm/3/latest/disk.img").read_bytes() == bytes(5 * MIB)
            assert (mount / "vm/3/latest/disk.img").stat().st_blocks == 0

    def test_no_exception_ends_the_mount(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """Every handler breaks in every way it can, under load; then it works as if nothing was."""
        tree = SplitTree()
        tree.enter(b"d")
        for number in range(50):
            tree.file(b"f%02d" % number, noise(number, 5000))
        tree.leave()
        with snapshot(datastore, f"host/h/{TIME}") as builder:
            builder.split_tree("root", tree)
            builder.image("disk.img", noise(1, MIB))
        broken, mountpoint = tmp_path / "broken", tmp_path / "m"
        broken.touch()
        mountpoint.mkdir()
        faulty = Path(__file__).parent.parent / "fakes" / "faulty_mount.py"
        command = [sys.executable, faulty, repository, mountpoint, broken]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            wait_until(mountpoint.is_mount)
            end = time.monotonic() + 3
            with ThreadPoolExecutor(4) as pool:
                seen = set().union(*pool.map(lambda _: hammer(mountpoint, end), range(4)))
            assert process.poll() is None
            assert {errno.EIO, errno.EBADF} <= seen
            broken.unlink()
            time.sleep(1.1)
            found = sorted((mountpoint / "host/h" / TIME / "root.pxar/d").iterdir())
            assert [path.read_bytes() for path in found] == [noise(at, 5000) for at in range(50)]
        finally:
            run("umount", mountpoint)
            assert process.wait(20) == 0
        assert "Traceback" in (tmp_path / "log").read_text()


def hammer(mountpoint: Path, end: float) -> set[int]:
    """Walk and read everything until `end`; returns the errnos met."""
    seen: set[int] = set()
    while time.monotonic() < end:
        for directory, _, files in os.walk(
            mountpoint, onerror=lambda error: seen.add(error.errno or 0)
        ):
            for name in files:
                path = Path(directory, name)
                for call in (Path.lstat, Path.read_bytes, os.listxattr, digest_of, next_hole):
                    try:
                        call(path)
                    except OSError as error:
                        seen.add(error.errno or 0)
    return seen


def digest_of(path: Path) -> bytes:
    return os.getxattr(path, "user.vaultway.digest")


def next_hole(path: Path) -> int:
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE)


class TestStarting:
    def test_refusals(self, datastore: Datastore, repository: Path, tmp_path: Path) -> None:
        """Each is said by the command itself, with its exit code, and leaves nothing mounted."""
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        there = tmp_path / "m"
        there.mkdir()
        (tmp_path / "file").touch()
        wrong = tmp_path / "wrong.json"
        wrong.write_bytes(
            create_key_file(
                KEY.key, b"passphrase", None, bytes(16), "2025-01-01T00:00:00+00:00"
            ).encode()
        )
        assert "missing" in error_line("mount", repository, tmp_path / "missing", expect=10)
        assert "not a directory" in error_line("mount", repository, tmp_path / "file", expect=2)
        assert "nowhere" in error_line("mount", tmp_path / "nowhere", there, expect=10)
        assert "needs rw" in error_line("mount", repository, there, "-o", "seal=close", expect=2)
        assert "frob" in error_line("mount", repository, there, "-o", "noatime,frob=1", expect=2)
        assert "key" in error_line(
            "mount", repository, there, "--keyfile", tmp_path / "none", expect=10
        )
        assert "PBS_REPOSITORY" in error_line("mount", there, expect=2)
        assert "nope" in error_line("mount", repository, there, "--ns", "nope", expect=10)
        log = Path("/proc/nope/log")
        assert "log file" in error_line("mount", repository, there, "--log", log, expect=16)
        assert "hide" in error_line("mount", repository, repository, expect=2)
        assert "hide" in error_line("mount", repository, tmp_path, expect=2)
        assert not there.is_mount()

    def test_busy_mountpoint_and_umount(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        there = tmp_path / "m m"
        assert "nothing is mounted" in error_line("umount", tmp_path, expect=10)
        assert "proc" in error_line("umount", "/proc", expect=2)
        with mounted(repository, there):
            assert "mounted there already" in error_line("mount", repository, there, expect=12)
            with (there / "vm/1/latest/a.conf").open("rb"):
                assert "in use" in error_line("umount", there, expect=12)
            pid = int(os.getxattr(there, "user.vaultway.pid"))
            run("umount", there)
            assert has_ended(pid)
            run("mount", there, env={"PBS_REPOSITORY": str(repository)})

    def test_foreground_ends_with_a_signal(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """Also while a file is open: clean, and with exit code 0."""
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.image("disk.img", noise(1, 9 * MIB))
        there = tmp_path / "m"
        there.mkdir()
        for number in (signal.SIGTERM, signal.SIGINT):
            with started("mount", repository, there, "-f") as process:
                wait_until(there.is_mount)
                file = os.open(there / "vm/1/latest/disk.img", os.O_RDONLY)
                assert os.read(file, 10)
                process.send_signal(number)
                assert process.wait(20) == 0
                with suppress(OSError):  # there is nobody to tell
                    os.close(file)
                assert not there.is_mount()

    def test_killed_mount_is_cleared_away(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        with mounted(repository, tmp_path / "m") as mount:
            os.kill(int(os.getxattr(mount, "user.vaultway.pid")), signal.SIGKILL)
            wait_until(lambda: is_dead(mount))
            assert "vaultway umount" in error_line("mount", repository, mount, expect=12)
            run("umount", mount)
            assert names(mount) == []
            run("mount", repository, mount)
            assert (mount / "vm/1/latest/a.conf").read_bytes() == b"x"

    def test_as_an_ordinary_user(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        """Through fusermount3, and umount the same way."""
        with snapshot(datastore, f"vm/1/{TIME}") as builder:
            builder.blob("a.conf", b"x")
        give_to_nobody(tmp_path)
        there = tmp_path / "m"
        there.mkdir()
        shutil.chown(there, "nobody")
        mounted_and_back = f"""
            $vaultway mount {repository} {there} --log {tmp_path}/log
            cat {there}/vm/1/latest/a.conf; read=$?
            $vaultway umount {there}; mountpoint -q {there} && exit 1
            exit $read
        """
        done = with_private_fuse(tmp_path, 0o666, mounted_and_back)
        assert (done.returncode, done.stdout) == (0, "x"), done.stderr

    def test_fuse_is_closed_to_an_ordinary_user(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        give_to_nobody(tmp_path)
        done = with_private_fuse(tmp_path, 0o600, f"$vaultway mount {repository} {tmp_path}/store")
        assert (done.returncode, done.stdout) == (11, "")
        assert done.stderr == "vaultway: /dev/fuse: Permission denied\n"

    def test_namespace_as_root(
        self, datastore: Datastore, repository: Path, tmp_path: Path
    ) -> None:
        datastore.create_namespace(Namespace(("a",)))
        datastore.create_namespace(Namespace(("a", "b")))
        with snapshot(datastore, f"vm/1/{TIME}", namespace=Namespace(("a", "b"))) as builder:
            builder.blob("a.conf", b"x")
        with mounted(repository, tmp_path / "m", "--ns", "a") as mount:
            assert names(mount) == ["ns"]
            assert (mount / "ns/b/vm/1/latest/a.conf").read_bytes() == b"x"
        with mounted(repository, tmp_path / "m", "-o", "ns=a/b") as mount:
            assert (mount / "vm/1/latest/a.conf").read_bytes() == b"x"


def is_dead(mount: Path) -> bool:
    try:
        mount.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def has_ended(pid: int) -> bool:
    """Gone, or waiting for an init that takes its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: object, limit_s: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def as_nobody(*command: object) -> bytes:
    done = subprocess.run(
        [str(part) for part in command], user="nobody", group="nogroup", extra_groups=[], cwd="/",
        capture_output=True, check=False, env=environment({"HOME": "/tmp"}),
    )  # fmt: skip
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def give_to_nobody(folder: Path) -> None:
    subprocess.run(["chown", "-R", "nobody", folder], check=True)
    open_the_way(folder)


def open_the_way(folder: Path) -> None:
    """Let other users reach a folder of pytest's; nothing outside of its own is touched."""
    for place in (folder, *folder.parents):
        if "pytest-of-" in str(place):
            place.chmod(0o755)


# Arguments: a scratch directory, the clone, the mode of /dev/fuse, what nobody runs. The clone is
# put where nobody may enter; the device is made in a tmpfs, for /tmp may be mounted nodev. A chroot
# that is no mount cannot be made private: what others then see of it is taken away at the end.
PRIVATE_FUSE = f"""
    mount --make-rprivate / 2>/dev/null || trap 'cd /; umount -l "$1/clone" /dev/fuse "$1"' EXIT
    {LEAVE_OTHERS_MOUNTS}
    mount -t tmpfs -o mode=755 vaultway "$1"
    mknod -m "$3" "$1/fuse" c 10 229
    mount --bind "$1/fuse" /dev/fuse
    mkdir "$1/clone"
    mount --bind "$2" "$1/clone"
    cd "$1/clone"
    export vaultway=".venv/bin/python -m store.cli.main"
    setpriv --reuid nobody --regid nogroup --clear-groups sh -c "$4"
"""


def with_private_fuse(folder: Path, mode: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as nobody, with a /dev/fuse of its own of this mode: a machine without
    udev keeps the real one for root."""
    scratch = folder / "private"
    scratch.mkdir()
    arguments = [str(scratch), str(Path(__file__).parents[2]), f"{mode:o}", script]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", PRIVATE_FUSE, "sh",
         *arguments],
        capture_output=True, text=True, check=False, timeout=120, env=environment({"HOME": "/tmp"}),
    )  # fmt: skip

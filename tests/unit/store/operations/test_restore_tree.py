import os
import stat
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from store.errors import (
    AlreadyExists,
    FormatError,
    IntegrityError,
    InvalidName,
    NotFound,
    OutOfSpace,
    StoreError,
)
from store.format.pxar.acl import Acl
from store.operations.restore import RestoreOptions, RestoreResult, restore_archive
from store.operations.restore import tree as tree_module
from store.operations.restore.tree import TreeWriter
from store.operations.restore.writing import write_sparse
from tests.unit.store.operations.handmade import (
    DIRECTORY,
    FILE,
    TIME,
    Builder,
    Snapshot,
    Stream,
    metadata,
)

MiB = 1 << 20
pytestmark = pytest.mark.usefixtures("small_files")
needs_root = pytest.mark.needs("root")
one_by_one = pytest.mark.parametrize("small_files", [False], indirect=True)
"""For tests that look into how a file is made in Python."""


@pytest.fixture(params=[False, True], ids=["v1", "split"])
def builder(request: pytest.FixtureRequest) -> Builder:
    return Builder(split=request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def restore(builder: Builder, target: Path, *patterns: str, **options: Any) -> RestoreResult:
    reader = builder.snapshot()
    return restore_archive(
        reader, "root.pxar", str(target), RestoreOptions(**options), patterns=patterns
    )


def names(directory: Path) -> list[bytes]:
    return sorted(os.fsencode(path.relative_to(directory)) for path in directory.rglob("*"))


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class TestWhole:
    def test_files_directories_and_links(self, builder: Builder, target: Path) -> None:
        builder.file(b"a", b"first")
        builder.enter(b"d", metadata(0o040700, mtime_s=-5, mtime_ns=999_999_999))
        builder.hardlink(b"h", b"a")
        builder.file(b"\xff\xfe", b"")
        builder.leave()
        builder.symlink(b"l", b"/no/where")
        result = restore(builder, target)
        assert names(target) == [b"a", b"d", b"d/h", b"d/\xff\xfe", b"l"]
        assert (target / "a").read_bytes() == b"first"
        assert (target / "a").samefile(target / "d/h")
        assert (target / "l").readlink() == Path("/no/where")
        info = (target / "d").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o700, -4_000_000_001)
        assert (target / "a").stat().st_mtime_ns == TIME * 10**9 + 7
        assert (target / "l").lstat().st_mtime_ns == TIME * 10**9 + 7
        assert target.stat().st_mtime_ns == TIME * 10**9 + 7
        warnings = 0 if os.geteuid() == 0 else 1  # only root gives files to root
        assert (result.entries, result.bytes, result.warnings) == (6, 5, warnings)

    def test_content_across_chunks(self, builder: Builder, target: Path) -> None:
        contents = {b"%03d" % i: os.urandom(i * 7919 % 300_000) for i in range(20)}
        for one, content in contents.items():
            builder.file(one, content)
        restore(builder, target)
        assert {os.fsencode(p.name): p.read_bytes() for p in target.iterdir()} == contents

    def test_zeros_become_holes(self, builder: Builder, target: Path) -> None:
        middle = bytes(3 * MiB) + b"x" * 1000 + bytes(2 * MiB) + b"y"
        builder.file(b"hole-at-the-end", b"x" + bytes(4 * MiB))
        builder.file(b"middle", middle)
        builder.file(b"only-hole", bytes(MiB))
        restore(builder, target)
        assert (target / "hole-at-the-end").read_bytes() == b"x" + bytes(4 * MiB)
        assert (target / "middle").read_bytes() == middle
        assert (target / "only-hole").read_bytes() == bytes(MiB)
        used = sum(p.stat().st_blocks * 512 for p in target.iterdir())
        assert used < MiB

    def test_an_empty_tree(self, builder: Builder, target: Path) -> None:
        assert restore(builder, target).entries == 1
        assert names(target) == []

    def test_deep_trees(self, builder: Builder, target: Path) -> None:
        for _ in range(200):
            builder.enter(b"d")
        builder.file(b"f", b"deep")
        for _ in range(200):
            builder.leave()
        assert restore(builder, target).entries == 202

    @needs_root
    def test_metadata(self, builder: Builder, target: Path) -> None:
        acl = Acl(users=((1000, 7),), group_obj=4)
        builder.file(b"acl", b"", metadata(0o100664, acl=acl))
        raw = metadata(0o104755, uid=1000, gid=1001, xattrs=((b"user.a", b"\0b"),))
        builder.file(b"setuid", b"x", raw)
        fcaps = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
        builder.file(b"with-caps", b"x", metadata(0o100755, uid=5, fcaps=fcaps))
        restore(builder, target)
        info = (target / "setuid").stat()
        assert (info.st_mode, info.st_uid, info.st_gid) == (0o104755, 1000, 1001)
        assert os.getxattr(target / "setuid", "user.a") == b"\0b"
        assert os.getxattr(target / "with-caps", "security.capability") == fcaps
        assert len(os.getxattr(target / "acl", "system.posix_acl_access")) == 4 + 5 * 8
        assert (target / "acl").stat().st_mode == 0o100664

    @needs_root
    def test_file_flags(self, builder: Builder, target: Path) -> None:
        flags = 0x100000 | 0x20000  # nodump, noatime
        warnings: list[str] = []
        builder.file(b"flagged", b"x", metadata(FILE, flags=flags))
        restore(builder, target, on_warning=warnings.append)
        if not warnings:  # a file system that has them
            import fcntl

            with (target / "flagged").open("rb") as opened:
                found = int.from_bytes(fcntl.ioctl(opened, 0x80086601, bytes(8))[:4], "little")
            assert found & 0xC0 == 0xC0

    def test_immutable_files_do_not_stop_their_links(self, builder: Builder, target: Path) -> None:
        builder.file(b"a", b"x", metadata(FILE, flags=0x400000))
        builder.hardlink(b"b", b"a")
        warnings: list[str] = []
        try:
            restore(builder, target, on_warning=warnings.append)
            assert (target / "b").read_bytes() == b"x"
        finally:
            for one in ("a", "b"):
                if (target / one).exists():
                    os.system(f"chattr -i {target / one} 2>/dev/null")

    @needs_root
    def test_inherited_acls_are_dropped(self, builder: Builder, target: Path) -> None:
        target.mkdir()
        default = struct.pack("<I", 2) + b"".join(
            struct.pack("<HHI", *one)
            for one in (
                (1, 7, 0xFFFFFFFF),
                (2, 5, 1000),
                (4, 5, 0xFFFFFFFF),
                (16, 7, 0xFFFFFFFF),
                (32, 0, 0xFFFFFFFF),
            )
        )
        os.setxattr(target, "system.posix_acl_default", default)
        builder.enter(b"d")
        builder.file(b"f", b"x")
        builder.leave()
        builder.file(b"f", b"x")
        restore(builder, target)
        for path in (target / "d", target / "d/f", target / "f"):
            assert os.listxattr(path) == []

    def test_ignoring_owners(self, builder: Builder, target: Path) -> None:
        builder.file(b"setuid", b"x", metadata(0o104755, uid=12345, gid=12345))
        warnings: list[str] = []
        restore(builder, target, ignore_ownership=True, on_warning=warnings.append)
        info = (target / "setuid").stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (os.geteuid(), 0o755)
        assert warnings == []

    @needs_root
    def test_as_another_user(self, builder: Builder, tmp_path: Path) -> None:
        """Owners, devices and capabilities are warnings, once each; the content is there."""
        for number in range(3):
            builder.file(b"f%d" % number, b"x", metadata(0o104755, uid=1, fcaps=b"y" * 20))
        home = tmp_path / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        reader = builder.snapshot()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.chdir(home)
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                warnings: list[str] = []
                restore_archive(
                    reader, "root.pxar", "t", RestoreOptions(on_warning=warnings.append)
                )
                os.write(writing, "\n".join(warnings).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as lines:
            warnings = lines.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        assert warnings == ["f0: owners not restored (not root), here and below"]
        info = (home / "t/f2").stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (65534, 0o755)


class TestPayloadStream:
    def test_padding_and_backward_references(self, target: Path) -> None:
        builder = Builder(split=True)
        contents = [os.urandom(200_000) for _ in range(3)]
        for number, content in enumerate(contents):
            builder.payload += os.urandom(100_000)  # what re-use leaves behind
            builder.file(b"%d" % number, content)
        reader = builder.snapshot()
        (archive, payload) = reader.trees["root.pxar"]  # type: ignore[attr-defined]
        first = struct.pack("<QQ", 16 + 100_000, 200_000)
        last = struct.pack("<QQ", 16 + 300_000 + 2 * 200_016, 200_000)
        assert first in archive.data
        assert last in archive.data
        swapped = archive.data.replace(first, b"*" * 16).replace(last, first)
        reader.trees["root.pxar"] = (Stream(swapped.replace(b"*" * 16, last)), payload)  # type: ignore[attr-defined]
        restore_archive(reader, "root.pxar", str(target))
        assert [(target / str(n)).read_bytes() for n in range(3)] == [
            contents[2],
            contents[1],
            contents[0],
        ]

    def test_a_long_gap_is_not_decoded(self, target: Path) -> None:
        builder = Builder(split=True)
        builder.file(b"a", b"first")
        builder.payload += bytes(40 * MiB)
        builder.file(b"b", b"second")
        reader = builder.snapshot()
        payload = reader.trees["root.pxar"][1]  # type: ignore[attr-defined]
        payload.broken_at = 20 * MiB
        restore_archive(reader, "root.pxar", str(target))
        assert (target / "b").read_bytes() == b"second"

    @pytest.mark.parametrize("offset", [0, 17, 100, 1 << 40, (1 << 64) - 1])
    def test_a_wrong_reference(self, target: Path, offset: int) -> None:
        builder = Builder(split=True)
        builder.file(b"a", b"first")
        reader = builder.snapshot()
        archive, payload = reader.trees["root.pxar"]  # type: ignore[attr-defined]
        good, bad = struct.pack("<QQ", 16, 5), struct.pack("<QQ", offset, 5)
        reader.trees["root.pxar"] = (Stream(archive.data.replace(good, bad)), payload)  # type: ignore[attr-defined]
        with pytest.raises(FormatError, match=r"^(a: payload stream|root\.pxar: content)"):
            restore_archive(reader, "root.pxar", str(target))
        assert names(target) == []


class TestPatterns:
    def build(self, builder: Builder) -> None:
        builder.enter(b"etc", metadata(0o040711))
        builder.file(b"hosts", b"127.0.0.1")
        builder.enter(b"ssh")
        builder.file(b"config", b"a")
        builder.file(b"key.bak", b"b")
        builder.leave()
        builder.leave()
        builder.enter(b"usr")
        builder.enter(b"ssh")
        builder.file(b"other", b"c")
        builder.leave()
        builder.hardlink(b"to-hosts", b"hosts", b"etc/hosts")
        builder.hardlink(b"too", b"hosts", b"etc/hosts")
        builder.leave()

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            (["/etc/hosts"], [b"etc", b"etc/hosts"]),
            (["etc/hosts"], [b"etc", b"etc/hosts"]),
            (["/etc/ssh"], [b"etc", b"etc/ssh", b"etc/ssh/config", b"etc/ssh/key.bak"]),
            (["/etc/ssh", "!*.bak"], [b"etc", b"etc/ssh", b"etc/ssh/config"]),
            (["/etc/*/conf*"], [b"etc", b"etc/ssh", b"etc/ssh/config"]),
            (["**/other"], [b"usr", b"usr/ssh", b"usr/ssh/other"]),
            (["ssh/", "!/usr"], [b"etc", b"etc/ssh", b"etc/ssh/config", b"etc/ssh/key.bak"]),
        ],
    )
    def test_selection(
        self, builder: Builder, target: Path, patterns: list[str], expected: list[bytes]
    ) -> None:
        self.build(builder)
        if "!/usr" in patterns:
            expected = [*expected, b"usr", b"usr/ssh", b"usr/ssh/other"]
        restore(builder, target, *patterns)
        assert names(target) == sorted(expected)

    def test_parents_keep_their_metadata(self, builder: Builder, target: Path) -> None:
        self.build(builder)
        restore(builder, target, "/etc/hosts")
        info = (target / "etc").stat()
        assert (info.st_mode, info.st_mtime_ns) == (0o040711, TIME * 10**9 + 7)

    def test_a_link_to_what_was_not_taken_becomes_a_file(
        self, builder: Builder, target: Path
    ) -> None:
        self.build(builder)
        restore(builder, target, "/usr/to*")
        assert names(target) == [b"usr", b"usr/to-hosts", b"usr/too"]
        assert (target / "usr/too").read_bytes() == b"127.0.0.1"
        assert (target / "usr/too").samefile(target / "usr/to-hosts")
        assert (target / "usr/too").stat().st_nlink == 2

    def test_a_link_to_what_was_taken_stays_one(self, builder: Builder, target: Path) -> None:
        self.build(builder)
        restore(builder, target, "/etc/hosts", "/usr/too")
        assert (target / "usr/too").samefile(target / "etc/hosts")

    def test_a_file_that_was_there_is_no_link_target(self, builder: Builder, target: Path) -> None:
        """With overwriting: etc/hosts is another file, which the archive knows nothing of."""
        self.build(builder)
        (target / "etc").mkdir(parents=True)
        (target / "etc/hosts").write_bytes(b"mine")
        restore(builder, target, "/usr/too", overwrite=True)
        assert (target / "usr/too").read_bytes() == b"127.0.0.1"
        assert (target / "etc/hosts").read_bytes() == b"mine"

    def test_an_existing_target_keeps_its_metadata(self, builder: Builder, target: Path) -> None:
        self.build(builder)
        target.mkdir(mode=0o705)
        restore(builder, target, "/etc/hosts")
        assert stat.S_IMODE(target.stat().st_mode) == 0o705

    def test_nothing_matches(self, builder: Builder, target: Path) -> None:
        self.build(builder)
        with pytest.raises(NotFound, match="pattern"):
            restore(builder, target, "/etc/nothing")
        assert not target.exists()

    def test_only_what_can_match_is_read(self, target: Path) -> None:
        builder = Builder(split=False)
        builder.enter(b"big")
        builder.file(b"f", os.urandom(MiB))
        builder.leave()
        builder.file(b"small", b"x")
        reader = builder.snapshot()
        reader.trees["root.pxar"][0].broken_at = MiB // 2  # type: ignore[attr-defined]
        restore_archive(reader, "root.pxar", str(target), patterns=["/small"])
        assert names(target) == [b"small"]

    def test_large_files(self, builder: Builder, target: Path) -> None:
        content = os.urandom(17 * MiB)
        builder.file(b"large", content)
        restore(builder, target, "large")
        assert (target / "large").read_bytes() == content

    def test_a_bad_pattern(self, builder: Builder, target: Path) -> None:
        with pytest.raises(InvalidName):
            restore(builder, target, "[")


class TestInTheWay:
    def test_an_empty_target_will_do(self, builder: Builder, target: Path) -> None:
        (target / "lost+found").mkdir(parents=True)
        builder.file(b"a", b"x")
        builder.enter(b"lost+found")
        builder.leave()
        restore(builder, target)
        assert names(target) == [b"a", b"lost+found"]

    def test_a_full_target_will_not(self, builder: Builder, target: Path) -> None:
        target.mkdir()
        (target / "mine").write_bytes(b"")
        with pytest.raises(AlreadyExists, match="not empty"):
            restore(builder, target)
        assert names(target) == [b"mine"]

    def test_a_file_as_target(self, builder: Builder, target: Path) -> None:
        target.write_bytes(b"mine")
        with pytest.raises(StoreError, match=str(target)):
            restore(builder, target)

    def test_a_target_without_a_parent(self, builder: Builder, target: Path) -> None:
        with pytest.raises(StoreError, match="deeper"):
            restore(builder, target / "deeper")

    def test_a_stream_as_target(self, builder: Builder) -> None:
        with pytest.raises(InvalidName, match="directory"):
            restore_archive(builder.snapshot(), "root.pxar", "-")

    def test_overwriting(self, builder: Builder, target: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"outside")
        target.mkdir()
        (target / "dir").mkdir()
        (target / "dir/old").write_bytes(b"kept")
        (target / "dir/same").write_bytes(b"old and longer")
        (target / "link").symlink_to(outside / "file")
        (target / "to-dir").symlink_to(outside)
        (target / "was-file").write_bytes(b"")
        builder.enter(b"dir")
        builder.file(b"same", b"new")
        builder.leave()
        builder.file(b"link", b"no link any more")
        builder.enter(b"to-dir")
        builder.file(b"file", b"inside")
        builder.leave()
        builder.enter(b"was-file")
        builder.leave()
        restore(builder, target, overwrite=True)
        assert (target / "dir/old").read_bytes() == b"kept"
        assert (target / "dir/same").read_bytes() == b"new"
        assert (target / "link").read_bytes() == b"no link any more"
        assert not (target / "link").is_symlink()
        assert (target / "to-dir/file").read_bytes() == b"inside"
        assert (target / "was-file").is_dir()
        assert (outside / "file").read_bytes() == b"outside"

    def test_overwriting_no_directory_with_a_file(self, builder: Builder, target: Path) -> None:
        (target / "a").mkdir(parents=True)
        builder.file(b"a", b"x")
        with pytest.raises(AlreadyExists, match="a: exists"):
            restore(builder, target, overwrite=True)


class TestFailures:
    def test_a_damaged_chunk(self, builder: Builder, target: Path) -> None:
        builder.enter(b"d")
        builder.file(b"good", b"x")
        builder.file(b"half", os.urandom(500_000))
        builder.leave()
        reader = builder.snapshot()
        metadata_stream, payload = reader.trees["root.pxar"]  # type: ignore[attr-defined]
        (payload or metadata_stream).broken_at = 300_000
        with pytest.raises(IntegrityError, match=r"^d/half: root.*incomplete tree$"):
            restore_archive(reader, "root.pxar", str(target))
        assert names(target) == [b"d", b"d/good"]

    @one_by_one
    def test_a_full_target(
        self, builder: Builder, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        builder.file(b"a", b"x")
        builder.file(b"b", b"y")
        monkeypatch.setattr(tree_module, "write_sparse", full)
        with pytest.raises(OutOfSpace, match=r"^a: no space left"):
            restore(builder, target)
        assert not target.exists()

    @one_by_one
    def test_a_full_target_in_the_middle_of_a_large_file(
        self, builder: Builder, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is filled in the background, while its directory is closed and others are made."""
        left = threading.Event()

        def full_later(file: int, pieces: Iterable[memoryview]) -> int:
            if threading.current_thread() is threading.main_thread():
                return write_sparse(file, pieces)
            assert sum(map(len, pieces)) > tree_module.LARGE_FILE
            assert left.wait(10)
            raise OSError(28, "No space left on device")

        def leave(writer: TreeWriter) -> None:
            leave_for_real(writer)
            left.set()

        def unlink(name: bytes, *, dir_fd: int) -> None:
            """What root may, for everybody else."""
            if not os.fstat(dir_fd).st_mode & stat.S_IWUSR:
                raise PermissionError(13, "Permission denied")
            unlink_for_real(name, dir_fd=dir_fd)

        builder.enter(b"d", raw=metadata(stat.S_IFDIR | 0o555))
        builder.file(b"large", bytes(100) + os.urandom(tree_module.LARGE_FILE))
        builder.leave()
        builder.file(b"small", b"x")
        leave_for_real, unlink_for_real = TreeWriter.leave, os.unlink
        monkeypatch.setattr(tree_module, "write_sparse", full_later)
        monkeypatch.setattr(TreeWriter, "leave", leave)
        monkeypatch.setattr(os, "unlink", unlink)
        with pytest.raises(OutOfSpace, match=r"^d/large: no space left"):
            restore(builder, target)
        assert b"d/large" not in names(target)

    def test_a_large_file_with_another_name(self, builder: Builder, target: Path) -> None:
        content = os.urandom(3 * MiB)
        builder.file(b"large", content)
        builder.hardlink(b"link", b"large")
        builder.file(b"z", content)
        assert restore(builder, target).entries == 4
        assert (target / "link").read_bytes() == (target / "z").read_bytes() == content
        assert (target / "link").samefile(target / "large")

    def test_no_thread_outlives_a_failure(self, builder: Builder, target: Path) -> None:
        before, descriptors = threading.active_count(), open_descriptors()
        for number in range(5):
            builder.file(b"%d" % number, os.urandom(MiB))
        reader = builder.snapshot()
        metadata_stream, payload = reader.trees["root.pxar"]  # type: ignore[attr-defined]
        (payload or metadata_stream).broken_at = int(3.5 * MiB)
        with pytest.raises(IntegrityError, match=r"^3: root.*incomplete tree$"):
            restore_archive(reader, "root.pxar", str(target))
        assert names(target) == [b"0", b"1", b"2"]
        assert (threading.active_count(), open_descriptors()) == (before, descriptors)

    def test_a_cut_archive(self, target: Path) -> None:
        builder = Builder(split=False)
        builder.file(b"a", b"x" * 1000)
        reader = builder.snapshot()
        whole = reader.trees["root.pxar"][0].data  # type: ignore[attr-defined]
        for length in (10, 60, 100, 200, 800, len(whole) - 1):
            cut = Snapshot(trees={"root.pxar": (Stream(whole[:length]), None)})
            with pytest.raises(FormatError):
                restore_archive(cut, "root.pxar", str(target), RestoreOptions(overwrite=True))  # type: ignore[arg-type]

    def test_no_such_archive(self, builder: Builder, target: Path) -> None:
        with pytest.raises(NotFound, match=r"there are root\.pxar"):
            restore_archive(builder.snapshot(), "rot.pxar", str(target))

    @pytest.mark.parametrize(
        "text", ["root.pxar", "root.pxar.didx", "root.mpxar.didx", "root.ppxar"]
    )
    def test_names_of_its_files_do_too(self, builder: Builder, target: Path, text: str) -> None:
        builder.file(b"a", b"x")
        assert restore_archive(builder.snapshot(), text, str(target)).archive == "root.pxar"

    def test_no_descriptors_are_left(self, builder: Builder, target: Path) -> None:
        builder.enter(b"d")
        builder.enter(b"e")
        builder.file(b"half", os.urandom(500_000))
        builder.leave()
        builder.leave()
        reader = builder.snapshot()
        metadata_stream, payload = reader.trees["root.pxar"]  # type: ignore[attr-defined]
        (payload or metadata_stream).broken_at = 300_000
        before = open_descriptors()
        with pytest.raises(IntegrityError):
            restore_archive(reader, "root.pxar", str(target))
        assert open_descriptors() == before


@one_by_one
@pytest.mark.parametrize("patterns", [[], ["*"], ["deepest"]], ids=["all", "every name", "one"])
def test_a_deep_tree_takes_few_descriptors(
    builder: Builder, target: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str]
) -> None:
    monkeypatch.setattr(tree_module, "OPEN_DIRECTORIES", 5)
    most = open_descriptors() + 5 + 10
    highest: list[int] = []
    make = TreeWriter._new_file

    def count_and_make(name: bytes, parent: int) -> int:
        highest.append(open_descriptors())
        return make(name, parent)

    monkeypatch.setattr(TreeWriter, "_new_file", staticmethod(count_and_make))
    for _ in range(40):
        builder.enter(b"d", metadata(DIRECTORY & ~0o333))
    builder.file(b"deepest", b"x")
    for depth in reversed(range(40)):
        builder.leave()
        builder.file(b"later", b"%d" % depth)
    restore(builder, target, *patterns)
    assert max(highest) <= most
    for depth in range(40):
        inner = target / ("d/" * (depth + 1))
        assert stat.S_IMODE(inner.stat().st_mode) == DIRECTORY & 0o777 & ~0o333
        inner.chmod(0o700)  # for us to enter it
        if "deepest" not in patterns:
            assert (inner.parent / "later").read_bytes() == b"%d" % depth
    assert (inner / "deepest").read_bytes() == b"x"


@one_by_one
def test_a_directory_moved_meanwhile_is_not_followed(
    builder: Builder, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "OPEN_DIRECTORIES", 2)
    make = TreeWriter._new_file

    def move_and_make(name: bytes, parent: int) -> int:
        (target.parent / "elsewhere").mkdir()
        (target / "d/d/d/d").rename(target.parent / "elsewhere/d")
        return make(name, parent)

    monkeypatch.setattr(TreeWriter, "_new_file", staticmethod(move_and_make))
    for _ in range(5):
        builder.enter(b"d")
    builder.file(b"deepest", b"x")
    for _ in range(5):
        builder.leave()
    with pytest.raises(StoreError, match="is in another directory now"):
        restore(builder, target)


def test_directory_modes_come_last(builder: Builder, target: Path) -> None:
    """A directory nobody may write to still gets its children."""
    builder.enter(b"locked", metadata(DIRECTORY & ~0o222))
    builder.file(b"a", b"x")
    builder.leave()
    restore(builder, target)
    assert stat.S_IMODE((target / "locked").stat().st_mode) == 0o555

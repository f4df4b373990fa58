"""`drive-*.img.d`: the files inside disks, compared with what the kernel says, or their maker."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import once, scratch_folder
from tests.guest_disks import (
    children_of,
    copy_while_mounted,
    fresh_content,
    loop_mounted,
    make_disk,
    make_kit,
    make_luks2,
    program,
    seen_facts,
    told_facts,
    tree_facts,
)
from tests.program import mounted, run

pytestmark = [
    pytest.mark.needs("fuse", "root", "images", "nbd"),
    pytest.mark.xdist_group("mount"),
    pytest.mark.timeout(600),
]

KERNELS = ("ext4", "xfs", "btrfs")
FRESH = 200


@pytest.fixture(scope="session")
def kit(shared_folder: Path) -> Path:
    """READ ONLY: the kit's images, and what is in them."""
    folder = shared_folder / "guest-disks"
    with once(folder) as first:
        if first:
            folder.mkdir()
            make_kit(folder)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with an empty datastore, `store`, in it."""
    with scratch_folder() as folder:
        run("datastore", "create", folder / "store")
        yield folder


@pytest.fixture(scope="module")
def store(kit: Path, place: Path) -> Path:
    """The datastore with one snapshot `vm/N` for each image of the kit, N being its name."""
    for image in kit.glob("*.raw"):
        back_up(place / "store", image, image.stem)
    return place / "store"


@pytest.fixture(scope="module")
def mount(store: Path, place: Path) -> Iterator[Path]:
    """A mount of it."""
    with mounted(store, place / "mount") as there:
        yield there


def back_up(store: Path, image: Path, ident: str, *options: object) -> None:
    run(
        "backup", f"drive-scsi0.img:{image}", "--backup-type", "vm", "--backup-id", ident,
        "--repository", store, *options,
    )  # fmt: skip


def inside(mount: Path, ident: str) -> Path:
    return mount / "vm" / ident / "latest" / "drive-scsi0.img.d"


def pid_of(mount: Path) -> int:
    return int(os.getxattr(mount, "user.vaultway.pid"))


def data_and_hole(path: Path) -> tuple[int, int]:
    """Where the first data of a file are, and where they end."""
    with path.open("rb") as file:
        data = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        return data, os.lseek(file.fileno(), data, os.SEEK_HOLE)


class TestTheKit:
    @pytest.mark.parametrize("kind", KERNELS)
    def test_all_is_as_the_kernel_shows_it(
        self, kit: Path, mount: Path, tmp_path: Path, kind: str
    ) -> None:
        with loop_mounted(kit / f"{kind}.raw", tmp_path / "kernel", "ro") as kernel:
            truth = tree_facts(kernel)
            attribute = os.getxattr(kernel / "one", "user.kit")
            links = (kernel / "big.bin").stat().st_nlink
            holes = data_and_hole(kernel / "sparse.bin")
        part = inside(mount, kind) / "part1"
        assert tree_facts(part) == truth
        assert len(truth) > 200
        assert os.getxattr(part / "one", "user.kit") == attribute == b"hello"
        assert (part / "big.bin").stat().st_nlink == links == 2
        assert (part / "big.bin").stat().st_ino == (part / "posix/hardlink").stat().st_ino
        assert (inside(mount, kind) / "kit").readlink() == Path("part1")
        assert data_and_hole(part / "sparse.bin") == holes

    @pytest.mark.parametrize("kind", ["ntfs", "fat32"])
    def test_what_windows_writes(self, kit: Path, mount: Path, kind: str) -> None:
        part = inside(mount, kind) / "part1"
        assert seen_facts(part) == told_facts(kit, "plain")
        status = (part / "one").stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o644, 0)
        assert (part / "many").stat().st_mode & 0o777 == 0o755

    def test_gpt_and_lvm(self, kit: Path, mount: Path) -> None:
        disk = inside(mount, "gpt-lvm")
        names = {f"part{number}.raw" for number in range(1, 6)} | {"part1", "part3", "part4"}
        links = {"ESP", "vgkit-data", "vgkit-frag", "vgkit-root"}
        assert set(os.listdir(disk)) == names | {"part5"} | links
        told = told_facts(kit, "posix")
        assert seen_facts(disk / "vgkit-root") == seen_facts(disk / "vgkit-data") == told
        digests = {
            path: facts[2] for path, facts in seen_facts(disk / "vgkit-frag").items() if facts[1]
        }
        lines = (kit / "lv-frag.sha256").read_text().splitlines()
        assert digests == {line[68:]: line[:64] for line in lines}

    def test_mbr_with_a_logical_partition(self, kit: Path, mount: Path) -> None:
        disk = inside(mount, "mbr-multi")
        assert {"part1", "part2", "part5", "part5.raw"} <= set(os.listdir(disk))
        for part, which in (("part1", "plain"), ("part2", "plain"), ("part5", "posix")):
            assert seen_facts(disk / part) == told_facts(kit, which)

    def test_a_raw_part_is_its_bytes(self, kit: Path, mount: Path) -> None:
        disk = inside(mount, "gpt-lvm")
        status = (disk / "part1.raw").stat()
        assert (status.st_size, status.st_mode & 0o777) == (40 << 20, 0o440)
        with (disk / "part1.raw").open("rb") as raw, (kit / "gpt-lvm.raw").open("rb") as image:
            image.seek(1 << 20)
            assert raw.read() == image.read(40 << 20)
        # A volume in two pieces, the second before the first.
        labels = [program("blkid", "-p", "-o", "value", "-s", "TYPE", str(disk / "part4.raw"))]
        assert labels == ["ext4\n"]


class TestBtrfs:
    def test_subvolumes_snapshots_and_compression(self, place: Path, tmp_path: Path) -> None:
        disk = tmp_path / "disk.raw"
        make_disk(disk, "btrfs", 400)
        with loop_mounted(disk, tmp_path / "kernel", "compress-force=zstd") as kernel:
            _fill_btrfs(kernel)
            os.sync()
        with loop_mounted(disk, tmp_path / "kernel", "ro,subvolid=5") as kernel:
            truth = tree_facts(kernel)
        back_up(place / "store", disk, "subvolumes")
        with mounted(place / "store", tmp_path / "mount") as mount:
            assert tree_facts(inside(mount, "subvolumes") / "part1") == truth
        assert {"home/user/zlib.txt", "@/lzo.txt", "snapshot/home/user"} & set(truth)


def _fill_btrfs(root: Path) -> None:
    """Each kind of compression, in subvolumes one in the other, and a snapshot of the outer one."""
    text = b"".join(b"line %d of some text that packs well\n" % number for number in range(40_000))
    for volume in ("@", "home", "home/user"):
        program("btrfs", "subvolume", "create", str(root / volume))
    for folder, kind in (("@", "lzo"), ("home/user", "zlib"), ("home", "zstd")):
        file = root / folder / f"{kind}.txt"
        file.touch()
        program("btrfs", "property", "set", str(file), "compression", kind)
        file.write_bytes(text)
        with file.open("r+b") as written:
            written.seek(300_000)
            written.write(os.urandom(5000))
    (root / "small.txt").write_bytes(text[:1500])
    with (root / "@/holes").open("wb") as holes:
        holes.truncate(8 << 20)
        holes.seek(3 << 20)
        holes.write(text[:100_000])
    program("btrfs", "subvolume", "snapshot", "-r", str(root / "home"), str(root / "snapshot"))


class TestDisksInUse:
    @pytest.mark.parametrize(
        "kind",
        [
            "ext4",
            pytest.param("xfs", marks=pytest.mark.needs("microvm")),
            pytest.param("btrfs", marks=pytest.mark.needs("microvm")),
        ],
    )
    def test_files_that_were_fsynced_are_there(
        self, place: Path, tmp_path: Path, kind: str
    ) -> None:
        copy_while_mounted(tmp_path / "disk.raw", kind, FRESH, tmp_path)
        back_up(place / "store", tmp_path / "disk.raw", f"in-use-{kind}")
        with mounted(place / "store", tmp_path / "mount") as mount:
            part = inside(mount, f"in-use-{kind}") / "part1"
            right = [
                number
                for number in range(FRESH)
                if (part / f"fresh/file-{number:03d}").read_bytes() == fresh_content(number)
            ]
        assert len(right) == FRESH

    @pytest.mark.parametrize("kind", ["xfs", "btrfs"])
    def test_what_nobody_can_replay_says_so(self, place: Path, tmp_path: Path, kind: str) -> None:
        copy_while_mounted(tmp_path / "disk.raw", kind, 3, tmp_path)
        back_up(place / "store", tmp_path / "disk.raw", f"unclean-{kind}")
        log = tmp_path / "log"
        options = ("--log", log, "-o", "no-micro-vm")
        with mounted(place / "store", tmp_path / "mount", *options) as mount:
            disk = inside(mount, f"unclean-{kind}")
            for _ in range(2):
                assert sorted(os.listdir(disk)) == ["part1.raw", "part1.unclean"]
            os.listdir(disk / "part1.unclean")
        lines = [line for line in log.read_text().splitlines() if "part1" in line]
        assert len(lines) == 1
        assert "WARNING" in lines[0]
        assert "as it was on the disk" in lines[0]


class TestEncryptedByTheGuest:
    def test_luks_opens_with_its_key(self, kit: Path, place: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("opensesame\n")
        secret.chmod(0o600)
        disk = tmp_path / "luks.raw"
        program(
            "qemu-img", "convert", "-f", "raw", "-O", "luks",
            "--object", "secret,id=key,data=opensesame", "-o", "key-secret=key,iter-time=50",
            str(kit / "ext4.raw"), str(disk),
        )  # fmt: skip
        back_up(place / "store", disk, "luks")
        for options in ((), ("-o", f"disk-keyfile={secret}")):
            log = tmp_path / f"log-{len(options)}"
            with mounted(place / "store", tmp_path / "mount", "--log", log, *options) as mount:
                part = inside(mount, "luks") / "part1"
                if options:
                    assert seen_facts(part) == told_facts(kit, "posix")
                    continue
                assert sorted(os.listdir(part.parent)) == ["part1", "part1.raw"]
                with pytest.raises(OSError) as raised:
                    os.listdir(part)
                assert raised.value.errno == errno.EACCES
            assert "is encrypted (luks)" in log.read_text()

    def test_luks_2(self, kit: Path, place: Path, tmp_path: Path) -> None:
        """Argon2, sectors of 4 KiB, a key file that is no text."""
        secret = tmp_path / "secret"
        secret.write_bytes(b"open\0sesame")
        secret.chmod(0o600)
        disk = tmp_path / "luks.raw"
        make_luks2(kit / "ext4.raw", disk, secret)
        back_up(place / "store", disk, "luks-2")
        options = ("--disk-keyfile", secret)
        with mounted(place / "store", tmp_path / "mount", *options) as mount:
            inner = inside(mount, "luks-2")
            assert sorted(os.listdir(inner)) == ["kit", "part1", "part1.raw"]
            assert seen_facts(inner / "part1") == told_facts(kit, "posix")


class TestTheMount:
    def test_listing_a_snapshot_reads_no_disk(self, mount: Path) -> None:
        with os.scandir(mount / "vm/ext4/latest") as entries:
            modes = {entry.name: entry.stat().st_mode & 0o777 for entry in entries}
        assert modes["drive-scsi0.img.d"] == 0o550

    def test_without_the_snapshots_key_its_disk_is_closed(
        self, kit: Path, place: Path, tmp_path: Path
    ) -> None:
        key = tmp_path / "key.json"
        run("key", "create", key, "--kdf", "none")
        back_up(place / "store", kit / "fat32.raw", "sealed", "--keyfile", key)
        log = tmp_path / "log"
        with mounted(place / "store", tmp_path / "mount", "--log", log) as mount:
            assert inside(mount, "sealed").is_dir()
            with pytest.raises(OSError) as raised:
                os.listdir(inside(mount, "sealed"))
            assert raised.value.errno == errno.EACCES
        with mounted(place / "store", tmp_path / "mount", "--keyfile", key) as mount:
            assert seen_facts(inside(mount, "sealed") / "part1") == told_facts(kit, "plain")

    def test_few_parsers_live_and_all_end_with_the_mount(
        self, kit: Path, store: Path, tmp_path: Path
    ) -> None:
        with mounted(store, tmp_path / "mount") as mount:
            pid = pid_of(mount)
            for image in sorted(kit.glob("*.raw")):
                for part in inside(mount, image.stem).glob("part?"):
                    assert os.listdir(part)
            living = children_of(pid)
            assert 1 <= len(living) <= 4
            states = [Path(f"/proc/{child}/stat").read_text() for child in living]
            assert not any(") Z " in state for state in states)
        assert not any(Path(f"/proc/{child}").exists() for child in living)

    def test_an_entry_is_found_again_after_its_parser_ended(self, mount: Path) -> None:
        part = inside(mount, "ntfs") / "part1"
        with (part / "big.bin").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for child in children_of(pid_of(mount)):
                os.kill(child, 9)
            assert len(file.read()) == size
            names = os.listdir(part / "deep")
        subprocess.run(["sync"], check=True)
        assert names == ["n0"]
        assert (part / "names/with space.txt").read_bytes() == b"space\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KERNELS, "ntfs", "fat"])
def test_20000_files_list_within_20_seconds(place: Path, tmp_path: Path, kind: str) -> None:
    if kind == "fat":
        image = tmp_path / "fat.raw"
        make_large_fat(image, tmp_path / "tree")
    else:
        make_kit(tmp_path / "kit", 20_000, kind)
        image = tmp_path / f"kit/{kind}.raw"
    back_up(place / "store", image, f"many-{kind}")
    with mounted(place / "store", tmp_path / "mount") as mount:
        part = inside(mount, f"many-{kind}") / "part1"
        started = time.monotonic()
        done = program("find", str(part), "-size", "+1000k")
        took = time.monotonic() - started
        assert len(program("find", str(part), "-type", "f").splitlines()) >= 20_000
    assert "big.bin" in done
    assert took < 20
    print(f"{kind}: 20,000 files listed in {took:.1f} s")


def make_large_fat(image: Path, tree: Path) -> None:
    """100 directories of 200 files: mtools take an hour for as many as the kit has in one."""
    for directory in range(100):
        folder = tree / f"directory {directory:02d}"
        folder.mkdir(parents=True)
        for number in range(200):
            (folder / f"A file with a long name {number}.txt").write_text(f"{number}\n")
    (tree / "big.bin").write_bytes(bytes(2 << 20))
    make_disk(image, "fat", 300)
    command = ["mcopy", "-s", "-i", image, *sorted(tree.iterdir()), "::"]
    subprocess.run(command, check=True, timeout=540)

"""BitLocker volumes, made by `tests/bitlocker.py`, whose metadata cryptsetup reads as well."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.errors import KeyRequired
from tests.bitlocker import BitLocker, Method
from tests.conftest import scratch_folder
from tests.guest_disks import Facts, facts_inside, make_disk, ntfs_mounted, program, seen_facts
from tests.program import mounted, run

pytestmark = [
    pytest.mark.needs("fuse", "root", "images"),
    pytest.mark.xdist_group("mount"),
    pytest.mark.timeout(300),
]

PASSWORD = "correct horse battery"
RECOVERY = "-".join(f"{number * 11:06d}" for number in (1, 65535, 300, 4000, 50000, 6, 777, 8888))
FILES = {"a.txt": b"a\n", "large.bin": b"".join(b"%07d\n" % number for number in range(300_000))}
WAYS = ("password", "recovery", "startup")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """An NTFS with FILES in it."""
    image = folder / "plain.raw"
    make_disk(image, "ntfs", 16)
    with ntfs_mounted(image, folder / "mount") as top:
        (top / "d").mkdir()
        for name, content in FILES.items():
            (top / "d" / name).write_bytes(content)
    return image


@pytest.fixture(scope="module")
def facts(plain: Path) -> dict[str, Facts]:
    """What is in it."""
    facts = facts_inside(plain)
    assert facts["d/large.bin"][3] == len(FILES["large.bin"])
    return facts


@pytest.fixture(scope="module", params=[*Method], ids=lambda method: method.name)
def encrypted(request: pytest.FixtureRequest, plain: Path) -> tuple[Path, BitLocker]:
    """The same encrypted in each of the ways, which a password, a recovery password and a startup
    key open."""
    volume = BitLocker(request.param, PASSWORD, RECOVERY)
    image = plain.with_name(f"{request.param.name}.raw")
    volume.encrypt(plain, image)
    return image, volume


def key_of(way: str, volume: BitLocker) -> bytes:
    if way == "startup":
        return volume.startup_key()
    return (PASSWORD if way == "password" else RECOVERY).encode()


@pytest.mark.parametrize("way", WAYS)
def test_cryptsetup_has_the_same_key(
    encrypted: tuple[Path, BitLocker], tmp_path: Path, way: str
) -> None:
    image, volume = encrypted
    key = tmp_path / "key"
    key.write_bytes(key_of(way, volume))
    said = program(
        "cryptsetup", "bitlkDump", "--batch-mode", "--dump-volume-key", "--key-file", str(key),
        str(image),
    )  # fmt: skip
    assert volume.volume_key.hex() in "".join(said.split())
    mode = "cbc-eboiv" if "CBC" in volume.method.name else "xts-plain64"
    assert mode in program("cryptsetup", "bitlkDump", str(image))


@pytest.mark.parametrize("way", WAYS)
def test_all_is_as_before_it_was_encrypted(
    encrypted: tuple[Path, BitLocker], facts: dict[str, Facts], way: str
) -> None:
    image, volume = encrypted
    assert FILES["large.bin"][:4096] not in image.read_bytes()
    assert facts_inside(image, b"another key", key_of(way, volume)) == facts


def test_whose_protection_is_suspended_needs_no_key(
    plain: Path, facts: dict[str, Facts], tmp_path: Path
) -> None:
    image = tmp_path / "suspended.raw"
    BitLocker(Method.XTS_128, suspended=True).encrypt(plain, image)
    assert facts_inside(image) == facts


def test_to_go(tmp_path: Path) -> None:
    plain, image = tmp_path / "fat.raw", tmp_path / "to-go.raw"
    make_disk(plain, "fat", 40)
    (tmp_path / "a.txt").write_bytes(FILES["a.txt"])
    subprocess.run(["mcopy", "-i", plain, tmp_path / "a.txt", "::"], check=True)
    volume = BitLocker(Method.XTS_256, PASSWORD, to_go=True)
    volume.encrypt(plain, image)
    assert "BITLK To Go" in program("cryptsetup", "bitlkDump", str(image))
    found = facts_inside(image, PASSWORD.encode())
    assert found == facts_inside(plain)
    assert [*found] == ["a.txt"]
    with pytest.raises(KeyRequired, match="is encrypted"):
        facts_inside(image)


def test_in_a_mount(plain: Path, folder: Path, tmp_path: Path) -> None:
    """With the key all is there; without, or with another, that is said in one line."""
    image = tmp_path / "disk.raw"
    BitLocker(Method.XTS_128, PASSWORD).encrypt(plain, image)
    run("datastore", "create", folder / "store")
    run("backup", f"drive-scsi0.img:{image}", "--backup-type", "vm", "--backup-id", "1",
        "--repository", folder / "store")  # fmt: skip
    for key in ("", "wrong\n", f"{PASSWORD}\n"):
        secret, log = tmp_path / "secret", tmp_path / f"log-{len(key)}"
        secret.write_text(key)
        secret.chmod(0o600)
        options = ("--log", log, *(("--disk-keyfile", secret) if key else ()))
        with mounted(folder / "store", tmp_path / "mount", *options) as mount:
            disk = mount / "vm/1/latest/drive-scsi0.img.d"
            assert sorted(os.listdir(disk)) == ["part1", "part1.raw"]
            if PASSWORD in key:
                found = seen_facts(disk / "part1")
                assert found["d/large.bin"][1] == len(FILES["large.bin"])
                assert (disk / "part1/d/large.bin").read_bytes() == FILES["large.bin"]
                assert log.read_text() == ""
                continue
            with pytest.raises(OSError) as raised:
                os.listdir(disk / "part1")
            assert raised.value.errno == errno.EACCES
        lines = [line for line in log.read_text().splitlines() if "bitlocker" in line]
        assert len(lines) == 1
        assert "is encrypted (bitlocker): no key given opens it" in lines[0]

"""The same commands on files inside a disk: a partition with ext4, made without mounting it."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.program import PROGRAM, environment, error_line, run

SECTOR, FIRST = 512, 2048


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("guest") / "source"
    (source / "etc/ssh").mkdir(parents=True)
    (source / "etc/fstab").write_text("/dev/vda1 / ext4\n")
    (source / "etc/ssh/key").write_bytes(os.urandom(300_000))
    (source / "etc/ssh/key").chmod(0o600)
    (source / "link").symlink_to("/etc/fstab")
    (source / "twin").hardlink_to(source / "etc/fstab")
    with (source / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"data")
    return source


@pytest.fixture(scope="module")
def store(module_store: Path, source: Path) -> Path:
    """With vm/1, whose disk has one partition, labelled `rootfs`."""
    part, disk = source.parent / "part", source.parent / "disk.raw"
    options = ["-q", "-L", "rootfs", "-d", str(source), str(part), "32M"]
    subprocess.run(["mkfs.ext4", *options], check=True)
    content = part.read_bytes()
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", FIRST, len(content) // SECTOR)
    table = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    disk.write_bytes(table + bytes((FIRST - 1) * SECTOR) + content)
    run(
        "backup", f"disk.img:{disk}", "--backup-type", "vm", "--backup-id", "1", "--quiet",
        "--repository", module_store,
    )  # fmt: skip
    return module_store


def output(store: Path, *arguments: object) -> bytes:
    command = [PROGRAM, *map(str, arguments), "--repository", store]
    done = subprocess.run(command, env=environment(), capture_output=True, check=True)
    return done.stdout


def test_find_and_files(store: Path, source: Path) -> None:
    found = output(store, "snapshot", "find", "vm/1", "disk.img/rootfs", "-0").split(b"\0")
    paths = {os.fsencode(path.relative_to(source)) for path in source.rglob("*")}
    assert set(found) - {b""} == {b"disk.img/part1/" + path for path in {*paths, b"lost+found"}}
    lines = output(store, "snapshot", "files", "vm/1", "disk.img").decode().splitlines()
    assert sorted(lines) == ["disk.img/part1.raw", "disk.img/part1/", "disk.img/rootfs"]


@pytest.mark.parametrize("name", ["etc/fstab", "etc/ssh/key", "link", "twin", "sparse"])
def test_cat(store: Path, source: Path, name: str) -> None:
    expected = (source / ("etc/fstab" if name == "link" else name)).read_bytes()
    assert output(store, "snapshot", "cat", "vm/1", f"disk.img/part1/{name}") == expected


def test_cat_of_the_partition(store: Path, source: Path) -> None:
    found = output(store, "snapshot", "cat", "vm/1", "disk.img.d/part1.raw")
    assert found == (source.parent / "part").read_bytes()


@pytest.mark.needs("root")
def test_restore(store: Path, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run("restore", "vm/1", "disk.img/rootfs", target, "--repository", store)
    (target / "lost+found").rmdir()
    assert output_of("rsync", "-aHAXn", "--checksum", "--itemize-changes", source, target) == b""
    assert (target / "twin").samefile(target / "etc/fstab")
    assert (target / "sparse").stat().st_blocks * 512 < 3 << 20


def output_of(program: str, *arguments: object) -> bytes:
    """Of a comparison of two directories, with their times: they are of whole seconds here."""
    *options, source, target = map(str, arguments)
    command = [program, *options, "--omit-dir-times", "--modify-window=1", f"{source}/", target]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.needs("root")
def test_shell(store: Path, source: Path, tmp_path: Path) -> None:
    lines = f"cd rootfs/etc\nselect ssh\nrestore-selected {tmp_path}/out\ncat fstab\n"
    done = subprocess.run(
        [PROGRAM, "catalog", "shell", "vm/1", "--repository", store],
        input=lines.encode(), env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith((source / "etc/fstab").read_bytes())
    key = tmp_path / "out/part1/etc/ssh/key"
    assert key.read_bytes() == (source / "etc/ssh/key").read_bytes()
    assert key.stat().st_mode & 0o7777 == 0o600


def test_what_is_not_there(store: Path) -> None:
    where = ("--repository", store)
    line = error_line("snapshot", "cat", "vm/1", "disk.img/part7/x", *where, expect=10)
    assert "no part7" in line
    line = error_line("snapshot", "cat", "vm/1", "disk.img/part1/etc", *where, expect=2)
    assert "is a directory" in line

"""Writable exports over real NBD: what is written, what lasts, what is sealed, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.program import PROGRAM, environment, error_line, exported, mounted, run, uri
from tests.writable_export import Export, writable

pytestmark = pytest.mark.needs("nbd", "qemu", "fio")

KITS = Path(__file__).parent.parent / "kits"
IMAGE = "vm/100/current/drive-scsi0.img"
MIB = 1 << 20


def output(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(place: str, *commands: str) -> str:
    arguments = [word for command in commands for word in ("-c", command)]
    return output("qemu-io", "-f", "raw", *arguments, place)


def script(place: str, text: str) -> str:
    """What a script prints, with `h` connected: in the Python that has libnbd."""
    start = f"import nbd, sys; h = nbd.NBD(); h.connect_uri({place!r}); exec(sys.argv[1])"
    return output("/usr/bin/python3", "-c", start, text)


def compare(one: str, other: object) -> None:
    assert "identical" in output("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", one, other)


def heads(place: Path, *common: object) -> list[dict[str, object]]:
    listed = run(
        "head", "list", "--heads", place / "heads", "--output-format", "json", *common[:2]
    ).stdout
    found: list[dict[str, object]] = json.loads(listed)
    return found


@pytest.fixture
def common(store: Path, tmp_path: Path) -> list[object]:
    """Repository and key of a new datastore."""
    key = tmp_path / "key.json"
    run("key", "create", key, "--kdf", "none")
    return ["--repository", store, "--keyfile", key]


@pytest.fixture
def backed_up(common: list[object], vm_disk: Path) -> list[object]:
    """The same, with one snapshot of a real disk."""
    source = f"drive-scsi0.img:{vm_disk}"
    run("backup", source, "--backup-type", "vm", "--backup-id", "100", *common)
    return common


def test_conformance_with_kill(tmp_path: Path, common: list[object]) -> None:
    """The whole of tests/kits/nbd-rw.sh: the export is killed in the middle, and goes on."""
    arguments = [IMAGE, *common, "--socket", tmp_path / "s", "--heads", tmp_path / "heads"]
    words = " ".join(map(str, arguments))
    start, restart, pid = tmp_path / "start", tmp_path / "restart", tmp_path / "pid"
    start.write_text(
        f"setsid {PROGRAM} export --writable {words} $1 > {tmp_path}/out 2> {tmp_path}/log &\n"
        f"echo $! > {pid}\nuntil grep -q nbd {tmp_path}/out; do sleep 0.1; done\n"
    )
    restart.write_text(
        f"child=$(pgrep -P $(cat {pid}) nbdkit)\nkill -9 $(cat {pid}) $child\n"
        f"while kill -0 $child 2> /dev/null; do sleep 0.1; done\nsh {start}\n"
    )
    env = environment({"KIT_LOG": str(tmp_path / "kit.log"), "KIT_RESTART": f"sh {restart}"})
    subprocess.run(["sh", start, "--size=64M"], env=environment(), timeout=60, check=True)
    try:
        done = subprocess.run(
            [KITS / "nbd-rw.sh", uri(tmp_path / "s"), "8"],
            env=env, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["kill", pid.read_text().strip()], check=False)
    assert done.returncode == 0, done.stdout + (tmp_path / "kit.log").read_text()[-3000:]
    assert "restart=yes" in done.stdout


def test_reading_kit(tmp_path: Path, backed_up: list[object], vm_disk: Path) -> None:
    """tests/kits/nbd.sh on a clone: all holds but what it asks of a read-only export."""
    truth = tmp_path / "truth.raw"
    shutil.copyfile(vm_disk, truth)
    with writable(tmp_path, "vm/100", *backed_up) as export:
        with truth.open("r+b") as file:  # where the kit tries to write, and then to zero
            file.write(bytes(512))
        qemu_io(export.uri, "write -z 0 512")
        done = subprocess.run(
            [KITS / "nbd.sh", export.uri, truth, "4"],
            env={**os.environ, "KIT_LOG": str(tmp_path / "kit.log")},
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    failed = set(done.stdout.partition("failed=[")[2].partition("]")[0].split())
    assert failed == {
        "is-readonly", "py-is-read-only", "py-write-refused", "py-zero-refused", "py-trim-refused",
    }, done.stdout + (tmp_path / "kit.log").read_text()[-3000:]  # fmt: skip


def test_sealed_is_what_was_read(tmp_path: Path, backed_up: list[object], vm_disk: Path) -> None:
    """The head stands on the snapshot; sealed, it is the next one, byte for byte."""
    copy = tmp_path / "copy.raw"
    with writable(tmp_path, IMAGE, *backed_up) as export:
        compare(export.uri, vm_disk)
        qemu_io(export.uri, "write -P 7 5M 300k", "write -z 20M 9M", "discard 60M 1M", "flush")
        output("nbdcopy", export.uri, copy)
        assert "nothing to seal" not in seal(tmp_path, *backed_up)
        compare(export.uri, copy)
        with exported("vm/100", *backed_up, socket=tmp_path / "r") as sealed:
            compare(sealed, copy)
        assert "nothing to seal" in seal(tmp_path, *backed_up)
        qemu_io(export.uri, "write -P 9 0 4k")
        compare(export.uri, export.named("drive-scsi0.img"))
    with exported("vm/100", *backed_up, socket=tmp_path / "r") as sealed:
        compare(sealed, copy)


def seal(place: Path, *arguments: object) -> str:
    return run("head", "seal", "vm/100", "--heads", place / "heads", *arguments).stdout


def test_seal_while_writing(tmp_path: Path, common: list[object]) -> None:
    """What is sealed is one moment: all writes before it, none after."""
    text = """
import sys
for number in range(1, 1 << 40):
    h.pwrite(number.to_bytes(8, "little") * 512, number % 1000 * 65536)
    if number == 3000:
        print("begun", flush=True)
"""
    with writable(tmp_path, IMAGE, "--size", "64M", *common) as export:
        command = [
            "/usr/bin/python3",
            "-c",
            f"import nbd; h = nbd.NBD(); h.connect_uri({export.uri!r})\n{text}",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            assert writer.stdout.readline()
            said = [seal(tmp_path, *common) for _ in range(2)]
            assert writer.poll() is None
            writer.kill()
    moments = [check_moment(line.split()[1], tmp_path, *common) for line in said]
    assert 3000 <= moments[0] < moments[1]


def check_moment(snapshot: str, tmp_path: Path, *common: object) -> int:
    """The number of the last write in it, and no other is missing or too new."""
    image = tmp_path / "sealed.raw"
    run("restore", snapshot, "drive-scsi0.img", image, *common)
    raw = image.read_bytes()
    image.unlink()
    found = [raw[slot * 65536 : slot * 65536 + 4096] for slot in range(1000)]
    numbers = [int.from_bytes(block[:8], "little") for block in found]
    last = max(numbers)
    for slot, (number, block) in enumerate(zip(numbers, found, strict=True)):
        assert number == last - (last - slot) % 1000, (slot, number, last)
        assert block == number.to_bytes(8, "little") * 512
    return last


def test_one_writer(tmp_path: Path, backed_up: list[object]) -> None:
    other = tmp_path / "other"
    with writable(tmp_path, IMAGE, *backed_up) as export:
        arguments = (IMAGE, *backed_up, "--heads", export.heads, "--socket", other)
        line = error_line("export", "--writable", *arguments, expect=12)
        assert f"the head of vm/100 is in use by process {export.nbdkit} on" in line
        (info,) = heads(tmp_path, *backed_up)
        assert str(export.nbdkit) in str(info["holder"])
    with writable(tmp_path, "vm/100/current", *backed_up):
        pass


@pytest.mark.needs("fuse")
def test_one_writer_with_a_mount(tmp_path: Path, backed_up: list[object]) -> None:
    """Of a mount and an export the first has the head; both can be there for other groups."""
    repository, key = str(backed_up[1]), backed_up[2:]
    options = ("-o", f"rw,heads={tmp_path}/heads", *key)
    with mounted(repository, tmp_path / "mnt", *options) as mount:
        current = mount / "vm/100/current"
        with writable(tmp_path, IMAGE, *backed_up):
            with pytest.raises(OSError, match="busy"):
                list(current.iterdir())
            assert list(mount.glob("vm/100/2*"))
        assert (current / "drive-scsi0.img").stat().st_size
        arguments = (IMAGE, *backed_up, "--heads", tmp_path / "heads", "--socket", tmp_path / "s")
        assert "in use by process" in error_line("export", "--writable", *arguments, expect=12)


def test_clone_leaves_nothing(tmp_path: Path, backed_up: list[object], vm_disk: Path) -> None:
    """Not in the datastore, not among the heads, not in the group's head."""
    store = Path(str(backed_up[1]))
    before = sorted(store.rglob("*"))
    with writable(tmp_path, "vm/100", *backed_up) as clone:
        qemu_io(clone.uri, "write -P 3 0 10M", "flush")
        (info,) = heads(tmp_path, *backed_up)
        assert str(info["label"]).startswith("export-")
        other = tmp_path / "2"
        other.mkdir()
        with writable(other, "vm/100/drive-scsi0.img", *backed_up) as second:
            compare(second.uri, vm_disk)
    assert [path.name for path in clone.heads.rglob("*") if path.is_file()] == []
    assert sorted(store.rglob("*")) == before
    clone.start()
    os.kill(clone.nbdkit, signal.SIGKILL)
    clone.process.communicate(timeout=30)
    assert clone.process.returncode == 1
    assert heads(tmp_path, *backed_up) == []
    clone.start()
    compare(clone.uri, vm_disk)
    clone.kill()
    assert len(heads(tmp_path, *backed_up)) == 1, "nobody was left to remove it"


def test_labelled_clone(tmp_path: Path, backed_up: list[object], vm_disk: Path) -> None:
    """Kept, exported again, sealed: then it is a snapshot of the group like any other."""
    label = ("--label", "test")
    with writable(tmp_path, "vm/100", *label, *backed_up) as clone:
        qemu_io(clone.uri, "write -P 3 0 1M")
    with writable(tmp_path, "vm/100", *label, *backed_up) as clone:
        qemu_io(clone.uri, "read -P 3 0 1M")
        assert "sealed vm/100/" in seal(tmp_path, *label, *backed_up)
    with exported("vm/100", *backed_up, socket=tmp_path / "r") as sealed:
        assert "pattern" not in output("qemu-io", "-r", "-f", "raw", "-c", "read -P 3 0 1M", sealed)
    run("head", "discard", "vm/100", *label, "--heads", clone.heads, "--yes", *backed_up[:2])
    assert heads(tmp_path, *backed_up) == []


def test_size(tmp_path: Path, common: list[object]) -> None:
    """A group is made, an image grows, it does not shrink; what is refused leaves nothing."""
    where = ("--heads", tmp_path / "heads", "--socket", tmp_path / "s", *common)
    no_group = error_line("export", "--writable", IMAGE, *where, expect=10)
    assert "vm/100 has no snapshot; with --size" in no_group
    assert heads(tmp_path, *common) == []
    with writable(tmp_path, IMAGE, "--size", "10M", *common) as export:
        qemu_io(export.uri, "write -P 1 9M 1M")
    with writable(tmp_path, IMAGE, "--size", "20M", *common) as export:
        assert output("nbdinfo", "--size", export.uri).strip() == str(20 * MIB)
        qemu_io(export.uri, "read -P 1 9M 1M", "read -P 0 10M 10M")
    line = error_line("export", "--writable", IMAGE, "--size", "1M", *where, expect=2)
    assert "does not shrink" in line
    two = ("vm/100/current/drive-scsi1.img", "--size", "1M")
    with writable(tmp_path, *two, *common) as export:
        assert "drive-scsi0" not in output("nbdinfo", "--list", export.uri)
    with writable(tmp_path, "vm/100/current", *common) as export:
        listed = json.loads(output("nbdinfo", "--list", "--json", export.uri))["exports"]
    names = [entry["export-name"] for entry in listed]
    assert names == [IMAGE, "vm/100/current/drive-scsi1.img"]


def test_refusals(tmp_path: Path, backed_up: list[object], store: Path) -> None:
    """Before anything is served, with an exit code; and no head is left of it."""
    other = tmp_path / "other.json"
    run("key", "create", other, "--kdf", "none")
    keyless, wrong = backed_up[:2], [*backed_up[:2], "--keyfile", other]
    for code, message, arguments in (
        (13, "needs the key", [IMAGE, *keyless]),
        (13, "not the given", [IMAGE, *wrong]),
        (
            10,
            "no drive-scsi9.img in vm/100/current",
            ["vm/100/current/drive-scsi9.img", *backed_up],
        ),
        (2, "--label is of a clone", [IMAGE, "--label", "x", *backed_up]),
        (2, "--size is of one image", ["vm/100/current", "--size", "1M", *backed_up]),
        (2, "seal=now", [IMAGE, "--seal", "now", *backed_up]),
    ):
        where = ("--heads", tmp_path / "heads", "--socket", tmp_path / "s")
        assert message in error_line("export", "--writable", *arguments, *where, expect=code)
        assert heads(tmp_path, *backed_up) == []
    assert "--writable" in error_line("export", "vm/100", "--size", "1M", *backed_up, expect=2)
    assert "add --writable" in error_line("export", IMAGE, *backed_up, expect=2)


@pytest.mark.parametrize("policy", ["close", "idle:1"])
def test_seal_policy(tmp_path: Path, common: list[object], policy: str) -> None:
    with writable(tmp_path, IMAGE, "--size", "10M", "--seal", policy, *common) as export:
        qemu_io(export.uri, "write -P 5 0 1M")
        if policy == "idle:1":
            until = time.monotonic() + 60
            while b"vm" not in run("snapshot", "list", *common[:2]).stdout.encode():
                assert time.monotonic() < until
                time.sleep(0.3)
        said = export.stop()
    assert ("sealed vm/100/" in said) == (policy == "close")
    with exported("vm/100", *common, socket=tmp_path / "r") as sealed:
        output("qemu-io", "-r", "-f", "raw", "-c", "read -P 5 0 1M", sealed)


def test_end_with_a_client(tmp_path: Path, common: list[object]) -> None:
    """Who is connected is cut off; what was written is there, flushed or not."""
    export = Export(tmp_path, IMAGE, "--size", "10M", *common)
    command = f"import nbd, sys; h = nbd.NBD(); h.connect_uri({export.uri!r}); h.pwrite(b'x' * 4096, 0); print(1, flush=True); sys.stdin.read()"  # noqa: E501
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout
        assert client.stdout.readline()
        assert export.stop() == ""
    export.start()
    assert script(export.uri, "print(h.pread(4096, 0) == b'x' * 4096)").strip() == "True"
    export.stop()
    assert export.log.read_text() == ""


def test_no_plaintext(tmp_path: Path, common: list[object]) -> None:
    """Nothing of what was written is to be read below the heads or the datastore."""
    secret = b"the books of a customer, in plain text"
    with writable(tmp_path, IMAGE, "--size", "10M", *common) as export:
        write = f"h.pwrite({secret!r} * 1000, 1 << 20); h.flush(); print(h.pread(3, 1 << 20))"
        assert "the" in script(export.uri, write)
        check_nothing(secret, export.heads)
        seal(tmp_path, *common)
        script(export.uri, f"h.pwrite({secret!r} * 1000, 2 << 20, nbd.CMD_FLAG_FUA)")
    check_nothing(secret, export.heads)
    check_nothing(secret, Path(str(common[1])))


def check_nothing(secret: bytes, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if secret in path.read_bytes()] == []


def test_chunks_gone(tmp_path: Path, backed_up: list[object]) -> None:
    """EIO where the base is needed; what is written is safe; all is well when they are back."""
    store = Path(str(backed_up[1]))
    with writable(tmp_path, IMAGE, *backed_up) as export:
        (store / ".chunks").rename(store / ".gone")
        failing = "try: h.pread(4096, 64 << 10)\nexcept nbd.Error as e: print(e.errno)"
        assert script(export.uri, failing).strip() == "EIO"
        qemu_io(export.uri, "write -P 4 64k 4k", "flush", "read -P 4 64k 4k")
        (store / ".gone").rename(store / ".chunks")
        qemu_io(export.uri, "read -P 4 64k 4k", "read 0 1M")


@pytest.mark.needs("root")
def test_full_disk(tmp_path: Path, common: list[object]) -> None:
    """ENOSPC for the write that has no room; what is there stays; sealing makes room."""
    small = tmp_path / "heads"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60M", "none", small], check=True)
    try:
        with writable(tmp_path, IMAGE, "--size", "100M", *common) as export:
            text = """
import os
done, data = 0, os.urandom(1 << 20)
try:
    while True:
        h.pwrite(data, done << 20)
        done += 1
except nbd.Error as error:
    print(error.errno)
h.flush()
print(done > 10 and all(h.pread(1 << 20, number << 20) == data for number in range(done)))
"""
            assert script(export.uri, text).split() == ["ENOSPC", "True"]
            assert "sealed vm/100" in seal(tmp_path, *common)
            text = """
import time
until = time.monotonic() + 30
while time.monotonic() < until:
    try:
        h.pwrite(bytes(1 << 20), 0)
        break
    except nbd.Error:
        time.sleep(0.5)
"""
            script(export.uri, text)
            qemu_io(export.uri, "write -P 1 0 10M", "flush", "read -P 1 0 10M")
    finally:
        subprocess.run(["umount", small], check=True)

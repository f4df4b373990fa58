"""`vaultway export` as a process: start, names, errors, end. What it serves: test_nbd.py."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.names import Namespace, Snapshot
from store.repositories.repository import open_datastore
from tests.golden_snapshots import KEY_PASSWORD
from tests.program import PROGRAM, environment, error_line, exported, uri

pytestmark = pytest.mark.needs("nbd", "qemu")

T1, T2 = "2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z"
CHUNK = 4 << 20
SIZE = 23069184


def output(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def refusal(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0, f"{command}: {done.stdout}"
    return done.stderr


def read(place: str, offset: int, size: int = 4096) -> str:
    """What qemu-io says of one read."""
    command = ["qemu-io", "-r", "-f", "raw", "-c", f"read {offset} {size}", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def nbd_script(place: Path) -> list[str]:
    """A command that runs a script, its last argument, with `h` connected.

    The Python is the system's: it is the one that has libnbd.
    """
    start = f"import nbd, sys; h = nbd.NBD(); h.connect_uri({uri(place)!r}); exec(sys.argv[1])"
    return ["/usr/bin/python3", "-c", start]


def disk_hash(place: str, tmp_path: Path) -> str:
    output("nbdcopy", place, tmp_path / "copy.raw")
    return hashlib.sha256((tmp_path / "copy.raw").read_bytes()).hexdigest()


def expected(golden: Path, revision: int) -> str:
    return (golden / f"expected/disk.{revision}.sha256").read_text().strip()


def child_of(process: subprocess.Popen[str]) -> int:
    """The nbdkit that `process` runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1, children
    return int(children[0])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


@contextmanager
def running(
    *arguments: object, log: Path | None = None, **env: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An export whose process the test handles itself, and its ready line."""
    with (log or Path(os.devnull)).open("w") as stderr:
        process = subprocess.Popen(
            [PROGRAM, "export", *map(str, arguments)],
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout
        yield process, process.stdout.readline().strip()
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.mark.parametrize("name", ["a b?#+é.sock", "a b?&#+%é.sock"])
def test_ready_line_opens_the_first_drive(tmp_path: Path, golden: Path, name: str) -> None:
    place = tmp_path / name
    with running("vm/100", "--repository", golden / "datastore", "--socket", place) as (_, line):
        assert line.startswith(f"nbd+unix:///vm/100/{T2}/drive-scsi0.img?socket=")
        assert disk_hash(line, tmp_path) == expected(golden, 2)
        if "%" not in name:  # QEMU 9 and later decode the query twice: no socket's & or % for them
            info = json.loads(output("qemu-img", "info", "--output=json", line))
            assert info["virtual-size"] == SIZE
        assert not place.stat().st_mode & 0o022, "to write is to connect"
    assert not place.exists()


@pytest.mark.parametrize(
    ("what", "revision"),
    [
        ("vm/100", 2),
        (f"vm/100/{T1}", 1),
        ("vm/100/drive-scsi0.img", 2),
        (f"vm/100/{T1}/drive-scsi0.img", 1),
    ],
)
def test_ways_to_say_what(tmp_path: Path, golden: Path, what: str, revision: int) -> None:
    place = tmp_path / "s"
    with exported(what, "--repository", golden / "datastore", socket=place):
        for name in ("", "drive-scsi0.img", "vm/100/latest/drive-scsi0.img"):
            assert disk_hash(uri(place, name), tmp_path) == expected(golden, revision)


def test_tcp(tmp_path: Path, golden: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ("vm/100", "--repository", golden / "datastore", "--port", port)
        line = error_line("export", *arguments, expect=12)
        assert str(port) in line
    with running(*arguments) as (process, line):
        assert line == f"nbd://127.0.0.1:{port}/vm/100/{T2}/drive-scsi0.img"
        assert disk_hash(line, tmp_path) == expected(golden, 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_encrypted(tmp_path: Path, golden: Path) -> None:
    """Readable with its key, which is nowhere to be seen from outside."""
    place, keyfile = tmp_path / "s", golden / "keys/pbkdf2.json"
    arguments = (
        "vm/101",
        "--repository",
        golden / "datastore",
        "--socket",
        place,
        "--keyfile",
        keyfile,
    )
    with running(*arguments, **KEY_PASSWORD) as (process, line):
        assert disk_hash(line, tmp_path) == expected(golden, 2)
        extents = json.loads(output("nbdinfo", "--map", "--json", line))
        assert any(extent["type"] == 3 for extent in extents)
        seen = b""
        for name in ("cmdline", "environ"):
            seen += Path(f"/proc/{child_of(process)}/{name}").read_bytes()
        assert b"key-password" not in seen
        assert not re.search(rb"[0-9a-f]{64}", seen)


@pytest.mark.parametrize(
    ("what", "options", "code", "message"),
    [
        ("vm/101", [], 13, "is encrypted; it needs the key"),
        ("vm/101", ["--keyfile", "keys/none.json"], 13, "needs the key"),
        ("vm/101", ["--keyfile", "keys/absent.json"], 10, "absent.json"),
        ("vm/102", [], 10, "vm/102"),
        ("vm/100/2024-01-01T00:00:00Z", [], 10, "2024-01-01"),
        ("vm/100/drive-scsi7.img", [], 10, "drive-scsi7.img"),
        ("host/v1", [], 10, "no disk image"),
        ("vm", [], 2, "type/id"),
        ("vm/100", ["--all"], 2, "what to export"),
        ("vm/100", ["--ns", "nobody"], 10, "vm/100"),
    ],
)
def test_bad_start(
    tmp_path: Path, golden: Path, what: str, options: list[str], code: int, message: str
) -> None:
    options = [str(golden / option) if option.startswith("keys/") else option for option in options]
    place = tmp_path / "s"
    arguments = ("export", what, *options, "--repository", golden / "datastore", "--socket", place)
    assert message in error_line(*arguments, expect=code)
    assert not place.exists()


def test_no_nbdkit(tmp_path: Path, golden: Path) -> None:
    arguments = (
        "export",
        "vm/100",
        "--repository",
        golden / "datastore",
        "--socket",
        tmp_path / "s",
    )
    line = error_line(*arguments, env={"PATH": str(tmp_path)}, expect=1)
    assert "apt install nbdkit" in line


def test_socket_in_use_or_dead(tmp_path: Path, golden: Path) -> None:
    place = tmp_path / "s"
    arguments = ("vm/100", "--repository", golden / "datastore", "--socket", place)
    with running(*arguments) as (process, line):
        assert "another server" in error_line("export", *arguments, expect=12)
        process.kill()
        process.wait()
    assert place.exists(), "nobody was left to remove it"
    wait_until(lambda: refuses(place), "nbdkit outlived us")
    with running(*arguments) as (_, line):
        assert "drive-scsi0" in output("nbdinfo", line)
    place.write_text("a file")
    assert "not a socket" in error_line("export", *arguments, expect=10)
    assert place.read_text() == "a file"


def refuses(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(place)) != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_end(tmp_path: Path, golden: Path, number: signal.Signals) -> None:
    """However we end, nbdkit ends too, clients or not; asked politely, we leave nothing."""
    place = tmp_path / "s"
    arguments = ("vm/100", "--repository", golden / "datastore", "--socket", place)
    with running(*arguments) as (process, _), socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(place))
        nbdkit = child_of(process)
        process.send_signal(number)
        code = process.wait(timeout=30)
        wait_until(lambda: is_gone(nbdkit), "nbdkit outlived us")
    assert code == (-number if number is signal.SIGKILL else 0)
    assert place.exists() == (number is signal.SIGKILL)


def test_death_of_nbdkit(tmp_path: Path, golden: Path) -> None:
    place, log = tmp_path / "s", tmp_path / "log"
    arguments = ("vm/100", "--repository", golden / "datastore", "--socket", place)
    with running(*arguments, log=log) as (process, _):
        os.kill(child_of(process), signal.SIGKILL)
        assert process.wait(timeout=30) == 1
    assert log.read_text() == "vaultway: nbdkit ended (SIGKILL): no reason given\n"
    assert not place.exists()


def test_unknown_names_are_refused_and_logged(tmp_path: Path, golden: Path) -> None:
    place, log = tmp_path / "s", tmp_path / "log"
    arguments = (f"vm/100/{T2}", "--repository", golden / "datastore", "--socket", place)
    with running(*arguments, log=log):
        for name in ("nosuch", f"vm/100/{T1}/drive-scsi0.img", "host/several/latest/disk.img"):
            assert refusal("nbdinfo", uri(place, name))
        assert output("nbdinfo", uri(place))
    lines = log.read_text().splitlines()
    assert len(lines) == 3, lines
    assert lines[0] == f"error: no image 'nosuch' in snapshot vm/100/{T2}"


def test_all_without_key(tmp_path: Path, golden: Path) -> None:
    """Encrypted images are listed with their sizes, and can't be read."""
    place, log = tmp_path / "s", tmp_path / "log"
    with running("--all", "--repository", golden / "datastore", "--socket", place, log=log):
        listed = json.loads(output("nbdinfo", "--list", "--json", uri(place)))["exports"]
        assert [entry["export-name"] for entry in listed] == [
            f"host/several/{T1}/disk.img",
            f"vm/100/{T2}/drive-scsi0.img",
            f"vm/100/{T1}/drive-scsi0.img",
            f"vm/101/{T2}/drive-scsi0.img",
            f"vm/101/{T1}/drive-scsi0.img",
        ]
        secret = uri(place, "vm/101/latest/drive-scsi0.img")
        assert output("nbdinfo", "--size", secret).strip() == str(SIZE)
        for _ in range(3):
            assert "Operation not permitted" in refusal("nbdcopy", secret, "null:")
        assert disk_hash(uri(place, "host/several/latest/disk.img"), tmp_path) == expected(
            golden, 1
        )
    lines = log.read_text().splitlines()
    assert len(lines) == 1, "the same failure again and again is one line"
    assert "it needs the key" in lines[0]


def test_two_exports_of_one_store(tmp_path: Path, golden: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    repository = ("--repository", golden / "datastore")
    with (
        exported(f"vm/100/{T1}", *repository, socket=first),
        exported(f"vm/100/{T2}", *repository, socket=second),
    ):
        assert disk_hash(uri(first), tmp_path) == expected(golden, 1)
        assert disk_hash(uri(second), tmp_path) == expected(golden, 2)


def test_namespace(tmp_path: Path, golden: Path) -> None:
    """A group in a namespace, by its full name and from the namespace's own point of view."""
    store, place = tmp_path / "store", tmp_path / "s"
    shutil.copytree(golden / "datastore", store, symlinks=True)
    shutil.copytree(store / "vm", store / "ns/prod/ns/customer-x/vm")
    name = f"ns/prod/ns/customer-x/vm/100/{T2}/drive-scsi0.img"
    with running("vm/100", "--ns", "prod/customer-x", "--repository", store, "--socket", place) as (
        _,
        line,
    ):
        assert line == f"nbd+unix:///{name}?socket={place}"
        assert disk_hash(line, tmp_path) == expected(golden, 2)
        assert disk_hash(uri(place, "vm/100/latest/drive-scsi0.img"), tmp_path) == expected(
            golden, 2
        )
    with exported("--all", "--repository", store, socket=place):
        assert name in output("nbdinfo", "--list", uri(place))
        assert disk_hash(uri(place, name), tmp_path) == expected(golden, 2)


@pytest.mark.parametrize("damage", ["flipped", "missing", "cut"])
def test_damaged_chunk(tmp_path: Path, golden: Path, damage: str) -> None:
    """EIO for the bytes of that chunk and nothing else; one line in the log; the server lives."""
    store, place, log = tmp_path / "store", tmp_path / "s", tmp_path / "log"
    shutil.copytree(golden / "datastore", store, symlinks=True)
    number, digest = chunk_of_data(store)
    path = store / ".chunks" / digest[:4] / digest
    raw = path.read_bytes()
    path.unlink()
    if damage != "missing":
        end = len(raw) // 2
        path.write_bytes(
            raw[:end] if damage == "cut" else raw[:end] + bytes([raw[end] ^ 1]) + raw[end + 1 :]
        )
    with running(f"vm/100/{T2}", "--repository", store, "--socket", place, log=log):
        for offset in (number * CHUNK, number * CHUNK + 4096, (number + 1) * CHUNK - 4096):
            assert "Input/output error" in read(uri(place), offset)
        for offset in (number * CHUNK - 4096, (number + 1) * CHUNK, SIZE - 4096):
            assert "4096/4096" in read(uri(place), offset)
        assert "Input/output error" in refusal("nbdcopy", uri(place), "null:")
        assert output("nbdinfo", "--map", uri(place))
    lines = log.read_text().splitlines()
    assert len(lines) == 1, lines
    assert digest in lines[0]
    assert "drive-scsi0.img" in lines[0]


def chunk_of_data(store: Path) -> tuple[int, str]:
    """Number and digest of a chunk of vm/100's disk that occurs once and is not at either end."""
    snapshot = Snapshot.parse(f"vm/100/{T2}")
    with open_datastore(str(store)) as datastore:
        index = datastore.fixed_index(Namespace(), snapshot, "drive-scsi0.img.fidx")
        digests = [str(digest) for digest in index.digests()]
    return next(
        (number, digest)
        for number, digest in enumerate(digests[1:-1], 1)
        if digests.count(digest) == 1
    )


def test_image_in_use_is_not_removed(tmp_path: Path, golden: Path) -> None:
    store, place = tmp_path / "store", tmp_path / "s"
    shutil.copytree(golden / "datastore", store, symlinks=True)
    forget = ("snapshot", "forget", f"vm/100/{T1}", "--repository", store)
    script = "import sys; print('open', flush=True); sys.stdin.read()"
    command = [*nbd_script(place), script]
    with (
        exported(f"vm/100/{T1}", "--repository", store, socket=place),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client,
    ):
        assert client.stdout
        assert client.stdout.readline()
        assert "vm/100" in error_line(*forget, expect=12)


def test_cache_command_and_small_cache(tmp_path: Path, golden: Path) -> None:
    """NBD_CMD_CACHE works, and a cache too small for two chunks is only slow."""
    place = tmp_path / "s"
    script = "assert h.can_cache(); h.cache(h.get_size(), 0); h.pread(100, h.get_size() - 100)"
    arguments = ("vm/100", "--repository", golden / "datastore", "--memory", "5M")
    with exported(*arguments, socket=place):
        output(*nbd_script(place), script)
        assert disk_hash(uri(place), tmp_path) == expected(golden, 2)


def test_many_connections_leave_nothing(tmp_path: Path, golden: Path) -> None:
    """Threads, descriptors and memory of a connection go with it."""
    place = tmp_path / "s"
    script = f"""
import nbd
for _ in range(200):
    h = nbd.NBD()
    h.connect_uri({uri(place)!r})
    buffers = [nbd.Buffer(4096) for _ in range(16)]
    left = [h.aio_pread(buffer, 4096 * n) for n, buffer in enumerate(buffers)]
    while left:
        h.poll(1000)
        left = [cookie for cookie in left if not h.aio_command_completed(cookie)]
    h.shutdown()
"""
    with running("vm/100", "--repository", golden / "datastore", "--socket", place) as (process, _):
        nbdkit = child_of(process)
        output("/usr/bin/python3", "-c", script)
        before = measure(nbdkit)
        output("/usr/bin/python3", "-c", script)
        after = measure(nbdkit)
    assert after["VmRSS"] < before["VmRSS"] + 2048, (before, after)
    assert after["descriptors"] <= before["descriptors"] + 1


def measure(pid: int) -> dict[str, int]:
    """Resident KiB and open descriptors of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "VmRSS": int(status["VmRSS"].split()[0]),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }

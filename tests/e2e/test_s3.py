"""The program on a bucket: everything it can do, what it costs, and how it ends when it must."""

import json
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from store.backends.s3.backend import S3Backend
from tests.program import error_line, exported, mounted, run, uri
from tests.s3_proxy import Fault, Request
from tests.s3_site import DAY, Site
from tests.s3_vault import IMAGE, LEGACY, METADATA, MIB, MODES, Vault, noise, press_ctrl_c
from tests.trees import differences, list_tree

pytestmark = pytest.mark.needs("s3")

# All of it works


@pytest.mark.needs("fuse", "root", "nbd", "qemu")
@pytest.mark.xdist_group("mount")
@pytest.mark.parametrize(
    ("mode", "encrypted"),
    [
        (LEGACY, True),
        (METADATA, False),
        pytest.param(LEGACY, False, marks=pytest.mark.slow),
        pytest.param(METADATA, True, marks=pytest.mark.slow),
    ],
)
def test_everything(vault: Vault, tmp_path: Path, mode: str, encrypted: bool) -> None:
    options: list[object] = []
    if encrypted:
        vault.run("key", "create", tmp_path / "key", "--kdf", "none")
        options = ["--keyfile", tmp_path / "key"]
    sources = [f"root.pxar:{vault.source}", f"drive.img:{vault.disk}"]
    times = ["--backup-id", "1", "--backup-type", "vm", "--change-detection-mode", mode]
    vault.run("backup", *sources, *times, *options)
    assert "vm/1/" in vault.run("snapshot", "list").stdout

    vault.run("restore", "vm/1", "root.pxar", tmp_path / "tree", *options)
    assert not differences(list_tree(tmp_path / "tree"), list_tree(vault.source))
    vault.run("restore", "vm/1", "drive.img", tmp_path / "disk", *options)
    assert (tmp_path / "disk").read_bytes() == vault.disk.read_bytes()

    with mounted(vault.repository, tmp_path / "m", *options, env=vault.env) as mount:  # type: ignore[arg-type]
        latest = mount / "vm/1/latest"
        assert not differences(list_tree(latest / "root.pxar"), list_tree(vault.source))
        assert (latest / "drive.img").read_bytes() == vault.disk.read_bytes()

    with exported("vm/1", *options, socket=tmp_path / "s", env=vault.env):
        place = uri(tmp_path / "s")
        info = json.loads(output("nbdinfo", "--json", place))
        assert info["exports"][0]["export-size"] == 16 * MIB
        output("qemu-img", "compare", "-f", "raw", "-F", "raw", place, vault.disk)


def output(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=True
    ).stdout


# What a second backup costs, and what it believes


@pytest.mark.parametrize("mode", MODES)
def test_an_unchanged_backup_makes_few_requests(vault: Vault, mode: str) -> None:
    first = vault.back_up(mode, 1)
    before = len(vault.site.proxy.requests)
    second = vault.back_up(mode, 2)
    requests = vault.site.proxy.requests[before:]
    assert second["new-chunks"] == 0 < first["new-chunks"]  # type: ignore[operator]
    indexes = sum("idx" in one["filename"] for one in second["files"])  # type: ignore[attr-defined]
    assert indexes == (1 if mode == IMAGE else 2)
    print(mode, len(requests))
    assert len(requests) < 20 + indexes, "\n".join(f"{one.method} {one.target}" for one in requests)


class Pairs:
    """Of the first six requests, each waits for the one that comes with it."""

    def __init__(self) -> None:
        self.barriers = [threading.Barrier(2) for _ in range(3)]

    def meet(self, number: int) -> None:
        if number < 6:
            with suppress(threading.BrokenBarrierError):
                self.barriers[number // 2].wait(10)


@pytest.mark.parametrize("mode", [IMAGE, LEGACY])
def test_a_restore_asks_for_a_chunk_after_three_round_trips(
    vault: Vault, tmp_path: Path, mode: str
) -> None:
    """Over two connections; each request waits here until the one comes that goes with it."""
    vault.back_up(mode, 1)
    before = len(vault.site.proxy.requests)
    pairs = Pairs()
    vault.site.break_requests(lambda number, _: pairs.meet(number))
    vault.check_restore(mode, tmp_path / "restored")
    assert not any(pair.broken for pair in pairs.barriers)
    made = [f"{one.method} {unquote(one.target)}" for one in vault.site.proxy.requests[before:]]
    index = "disk.img.fidx" if mode == IMAGE else "root.pxar.didx"
    snapshot, claims = "/.cnt/host/web01/1970-01-02T00:00:00Z/", "/.vaultway/locks/host,web01,"
    for number, first, second in (
        (0, "/.in-use", "prefix=" + vault.name + "/.cnt/host/web01/"),
        (2, f"{snapshot}index.json.blob", claims),
        (4, f"{snapshot}{index}", f"prefix={vault.name}{claims}"),
    ):
        pair = sorted(made[number : number + 2], key=lambda one: first not in one)
        assert first in pair[0]
        assert second in pair[1]
    assert all("/.chunks/" in one for one in made[6:-1])
    assert made[-1].startswith(f"DELETE /{vault.site.bucket}/{vault.name}{claims}")


@pytest.mark.needs("root")
@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_that_vanished_is_stored_again(vault: Vault, tmp_path: Path, mode: str) -> None:
    """The hints and the previous snapshot name it, and are not believed."""
    vault.back_up(mode, 1)
    lost, client = vault.chunks()[::2], vault.site.server.boto3()
    for key in lost:
        client.delete_object(Bucket=vault.site.bucket, Key=key)
    new = int(str(vault.back_up(mode, 2)["new-chunks"]))
    assert new == len(lost) or (mode == METADATA and new > len(lost))  # cut anew around them
    vault.check_restore(mode, tmp_path / "restored")


@pytest.mark.parametrize("mode", [IMAGE, METADATA])
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_chunk_damaged_in_the_bucket_is_found_when_it_is_read(
    vault: Vault, tmp_path: Path, mode: str, how: str
) -> None:
    """Not by a backup, which reads none (nor does a PBS's): only an empty one counts as missing.

    In metadata mode it reads the old metadata, and stores that chunk again.
    """
    vault.back_up(mode, 1)
    for key in vault.chunks():
        spoil(vault, key, how)
    second = vault.back_up(mode, 2)
    assert second["new-chunks"] == (1 if mode == METADATA else 0)
    line = vault.restore(mode, tmp_path / "restored", expect=15)
    assert "1970-01-03T00:00:00Z/" in line
    assert "at offset " in line
    assert any(Path(key).name in line for key in vault.chunks())


def spoil(vault: Vault, key: str, how: str) -> None:
    client, place = vault.site.server.boto3(), {"Bucket": vault.site.bucket, "Key": key}
    body = bytearray(client.get_object(**place)["Body"].read())
    half = len(body) // 2
    body[half] ^= 1
    client.put_object(**place, Body=bytes(body[:half] if how == "truncated" else body))


# How it ends when it must


@pytest.mark.timeout(600)
def test_kill_9(vault: Vault, tmp_path: Path) -> None:
    """At ten requests of a backup, before the server hears of it or after: nothing is in the way
    of the next one, which comes at once."""
    vault.back_up(LEGACY, 1)
    before = len(vault.site.proxy.requests)
    change(vault, 1)
    vault.back_up(LEGACY, 2)
    length, known, killed = len(vault.site.proxy.requests) - before, [1, 2], 0
    for day, number in enumerate(random.Random("kill").sample(range(length), 10), 3):
        change(vault, day)
        killed += kill_at(vault, number, vault.backup_command(LEGACY, 2 * day))
        found = vault.finished()
        assert found in (known, [*known, 2 * day])  # the manifest was stored, or it was not
        vault.back_up(LEGACY, 2 * day + 1)
        known = [*found, 2 * day + 1]
        assert {key.split("/")[4] for key in vault.site.keys(f"{vault.name}/.cnt/host/web01/")} == {
            "owner", *(time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(one * DAY)) for one in known)
        }  # fmt: skip
    assert vault.snapshots() == known
    assert killed >= 8  # a backup that cuts one chunk less makes one request less
    vault.check_restore(LEGACY, tmp_path / "restored")
    assert not [key for key in vault.locks() if "!x." in key]
    vault.run("group", "forget", "host/web01")
    with S3Backend(vault.site.config(vault.name)).lock_store(exclusive=True):
        pass  # who shares a lock is looked at, and removed if dead, by who wants it alone
    assert not vault.locks()


def change(vault: Vault, seed: int) -> None:
    (vault.source / "a/5").write_bytes(noise(seed, 300_000))


def kill_at(vault: Vault, number: int, command: list[object]) -> bool:
    """Whether it made so many requests at all."""
    started = threading.Event()
    process = None

    def plan(n: int, _: Request) -> Fault | None:
        if n == number:
            started.wait()
            assert process
            process.kill()
            return Fault("reset") if number % 2 else None
        return None

    vault.site.break_requests(plan)
    process = vault.started(*command)
    started.set()
    process.communicate(timeout=60)
    vault.site.heal()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.parametrize("mode", [IMAGE, LEGACY])
def test_ctrl_c_during_slow_uploads(vault: Vault, mode: str) -> None:
    uploading, ended = threading.Event(), threading.Event()

    def plan(_: int, request: Request) -> None:
        if request.method == "PUT" and "/.chunks/" in request.target:
            uploading.set()
            ended.wait(30)

    vault.site.break_requests(plan)
    process = vault.started(*vault.backup_command(mode, 1))
    assert uploading.wait(30)
    took_s = press_ctrl_c(process)
    ended.set()
    print(f"{took_s:.1f} s")
    assert took_s < 5  # 2 and less, on a machine that has nothing else to do
    assert vault.locks() == []
    assert vault.site.keys(f"{vault.name}/.cnt/") == []


@pytest.mark.parametrize("number", [0, 2, 4, 6])
def test_ctrl_c_while_a_restore_opens(vault: Vault, tmp_path: Path, number: int) -> None:
    """At two requests that nobody answers (the look at all claims is one of them): none is left."""
    vault.back_up(IMAGE, 1)
    pairs, asked = Pairs(), threading.Event()

    def plan(n: int, request: Request) -> Fault | None:
        if n < number + 2:
            pairs.meet(n)
        if n < number or request.method == "DELETE":
            return None
        if n > number:
            asked.set()
        return Fault("stall")

    vault.site.break_requests(plan)
    process = vault.started("restore", "host/web01", "disk.img", tmp_path / "restored")
    assert asked.wait(30)
    took_s = press_ctrl_c(process)
    print(f"{took_s:.1f} s")
    assert took_s < 5
    assert vault.locks() == []
    assert not list(tmp_path.glob("*restored*"))


# What is said of what can't be


def test_a_wrong_secret_key(vault: Vault) -> None:
    env = vault.env | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    line = error_line("snapshot", "list", env=env, expect=11)
    assert line.endswith(": wrong signature: check the secret key, and the region")
    assert vault.repository in line


def test_a_wrong_bucket_and_a_wrong_datastore(vault: Vault) -> None:
    env = vault.env | {"PBS_REPOSITORY": "s3://nobody-made-it/store"}
    line = error_line("snapshot", "list", env=env, expect=10)
    assert line.startswith("vaultway: bucket nobody-made-it at http://127.0.0.1:")
    assert line.endswith(" does not exist")
    other = f"s3://{vault.site.bucket}/other"
    line = error_line("snapshot", "list", env=vault.env | {"PBS_REPOSITORY": other}, expect=10)
    assert line == f"vaultway: {other} is not a datastore: it has no .chunks"


def test_a_wrong_endpoint(vault: Vault) -> None:
    env = vault.env | {"VAULTWAY_ENDPOINT": "http://127.0.0.1:9"}
    began = time.monotonic()
    line = error_line("snapshot", "list", "--retry-for", "1", env=env, expect=16)
    assert time.monotonic() - began < 10
    refused = f"{vault.repository}/.in-use: Connection refused (127.0.0.1:9)"
    assert line.startswith(f"vaultway: {refused} (tried ")
    line = error_line("snapshot", "list", "--endpoint", "http://x.invalid", env=env, expect=16)
    assert line.endswith("check the endpoint (x.invalid)")


@pytest.mark.slow
def test_a_wrong_port_is_given_up_after_half_a_minute(vault: Vault) -> None:
    """Unless one says how long to try; nobody waits without a word."""
    env = vault.env | {"VAULTWAY_ENDPOINT": "http://127.0.0.1:9"}
    began = time.monotonic()
    done = run("snapshot", "list", env=env, expect=16)
    assert time.monotonic() - began < 40
    *warnings, error = done.stderr.splitlines()
    refused = f"{vault.repository}/.in-use: Connection refused (127.0.0.1:9)"
    assert error.startswith(f"vaultway: {refused} (tried ")
    assert len(warnings) <= 1  # none if the draw makes a long pause of an early one
    assert all(line.startswith(f"warning: {refused}; trying") for line in warnings)


def test_a_bucket_that_a_pbs_holds(site: Site, vault: Vault, golden: Path) -> None:
    client, folder = site.server.boto3(), golden / "bucket/golds3"
    name = site.new_name()
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{name}/{path.relative_to(folder)}"
            client.put_object(Bucket=site.bucket, Key=key, Body=path.read_bytes())
    held = Vault(site, name, vault.folder)
    assert "host/split" in held.run("snapshot", "list").stdout
    line = held.run(*held.backup_command(LEGACY, 1), expect=11).stderr.splitlines()[-1]
    assert "read-only: held by the PBS on 'vm'" in line
    held.run(*held.backup_command(LEGACY, 1), "--take-over")
    assert "host/web01" in held.run("snapshot", "list").stdout

"""Longer troubles over real HTTP: a server that goes away, objects and caches that rot, memory."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.backends.cache.backend import Cache
from store.backends.mirror.backend import Mirror
from store.backends.s3.backend import S3Backend
from store.datastore.datastore import Datastore
from store.errors import BackendError, IntegrityError
from tests.program import PROGRAM, environment, error_line, mounted, run
from tests.s3_proxy import FAULTS, Fault, Request
from tests.s3_site import GROUP, ROOT, Plan, Site, retried
from tests.s3_vault import IMAGE, MIB, Vault, noise, press_ctrl_c

pytestmark = [pytest.mark.needs("s3"), pytest.mark.expect_warnings]

SLOW_DOWN = Fault("answer", 503, "SlowDown", (("Retry-After", "1"),))
MAX_RESIDENT = 300 * MIB
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""
"""Between us and the program: a child's figure is at least what its parent had when it forked."""


@pytest.fixture(autouse=True)
def hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "hints"))


@contextmanager
def opened(site: Site, name: str = "", retry_for_s: float = 20.0) -> Iterator[Datastore]:
    """A datastore through the proxy, made if it has no name."""
    backend = retried(S3Backend(site.config(name)), retry_for_s)
    if not name:
        backend.create()
    with Datastore("test", backend) as store:
        try:
            yield store
        finally:
            site.heal()


# A server that goes away


def test_a_server_that_comes_back(site: Site, tmp_path: Path) -> None:
    """A backup waits for it, wherever it is."""
    for number in (1, 8, 13, 17):
        with opened(site) as store:
            site.back_up(store, 1)
            site.break_requests(die_at(site, number, comes_back_after_s=0.3))
            site.check_restore(store, site.back_up(store, 2), 2, tmp_path)


def die_at(site: Site, number: int, comes_back_after_s: float | None = None) -> Plan:
    def plan(n: int, _: Request) -> Fault | None:
        if n != number:
            return None
        site.proxy.go_down()
        if comes_back_after_s is not None:
            threading.Timer(comes_back_after_s, site.proxy.come_up).start()
        return FAULTS["reset"]

    return plan


def test_a_server_that_stays_away(site: Site, tmp_path: Path) -> None:
    """One error in time, clean-up included; what the cache has is still read."""
    with opened(site, retry_for_s=2.0) as store:
        kept = site.back_up(store, 1)
        cache = Cache(store.backend, str(tmp_path / "cache"), 64 * MIB)
        digests = list(store.chunks.iterate())
        read = {digest: cache.read(store.chunks.name(digest)) for digest in digests[1:]}
        site.break_requests(die_at(site, 10))
        began = time.monotonic()
        with pytest.raises(BackendError, match=r"Connection refused \(.*\) \(tried \d+ times"):
            site.back_up(store, 2)
        assert time.monotonic() - began < 10
        for digest, raw in read.items():
            assert cache.read(store.chunks.name(digest)) == raw
        with pytest.raises(BackendError, match="Connection refused"):
            cache.read(store.chunks.name(digests[0]))
        site.proxy.come_up()
        site.check_restore(store, kept, 1, tmp_path)
        site.check_restore(store, site.back_up(store, 3), 3, tmp_path)
        assert len(store.list_snapshots(ROOT, GROUP)) == 2


def test_ctrl_c_while_the_server_is_away(vault: Vault, tmp_path: Path) -> None:
    """Clean-up has nobody to talk to, and does not wait; the next backup does it."""
    vault.back_up(IMAGE, 1)
    vault.disk.write_bytes(noise(8, 40 * MIB))
    is_away = threading.Event()

    def plan(_: int, request: Request) -> Fault | None:
        if request.method == "PUT" and "/.chunks/" in request.target and not is_away.is_set():
            vault.site.proxy.go_down()
            is_away.set()
        return None

    vault.site.break_requests(plan)
    process = vault.started(*vault.backup_command(IMAGE, 2))
    assert is_away.wait(30)
    assert press_ctrl_c(process) < 10
    vault.site.proxy.come_up()
    vault.back_up(IMAGE, 3)
    assert vault.finished() == [1, 3]
    vault.check_restore(IMAGE, tmp_path / "restored")


def test_a_server_is_given_the_time_it_asks_for(site: Site) -> None:
    with opened(site) as store:
        site.break_requests(lambda n, _: SLOW_DOWN if n == 0 else None)
        began = time.monotonic()
        assert store.list_snapshots(ROOT, GROUP) == []
        assert 1 <= time.monotonic() - began < 10


def test_a_mirror_opens_without_its_primary(vault: Vault, tmp_path: Path) -> None:
    """The second site is there for that. Nothing can be written."""
    vault.back_up(IMAGE, 1)
    config = tmp_path / "config.toml"
    config.write_text(
        '[defaults]\npath-style = true\nretry-for = "1s"\n'
        '[repository.main]\nurl = "s3://far/away"\nendpoint = "http://127.0.0.1:9"\n'
        'mirrors = ["second"]\n'
        f'[repository.second]\nurl = "{vault.repository}"\n'
        f'endpoint = "{vault.site.proxy.endpoint}"\n'
    )
    env = vault.site.server.environment | {"VAULTWAY_CONFIG": str(config), "PBS_REPOSITORY": "main"}
    done = run("restore", "host/web01", "disk.img", tmp_path / "disk", env=env)
    assert (tmp_path / "disk").read_bytes() == vault.disk.read_bytes()
    assert "warning: s3://far/away can't be reached, other sites are read instead" in done.stderr
    line = error_line(*vault.backup_command(IMAGE, 2), env=env, expect=16)
    assert "the primary site can't be reached, so nothing can be written: s3://far/away" in line


# Objects that the server itself has damaged


def always_wrong(part: str) -> Plan:
    wrong = FAULTS["wrong"]
    return lambda _, request: wrong if request.method == "GET" and part in request.target else None


def test_a_rotten_chunk(site: Site, tmp_path: Path) -> None:
    """Damage at once, not five minutes of attempts; and repaired from a mirror by a plain read."""
    with opened(site) as store, opened(site) as second:
        for one in (store, second):
            kept = site.back_up(one, 1)
        digest = store.dynamic_index(ROOT, kept, "root.pxar.didx").digest(0)
        name = store.chunks.name(digest)
        site.break_requests(always_wrong(name))
        with pytest.raises(IntegrityError, match=f"at offset 0: .*{digest}.* damaged in the sto"):
            site.check_restore(store, kept, 1, tmp_path)
        mirror = Mirror(store.backend, [second.backend], nearest=False)
        site.break_requests(only_in(store, always_wrong(name)))
        site.check_restore(Datastore("both", mirror), kept, 1, tmp_path)
        site.heal()
        site.check_restore(store, kept, 1, tmp_path)
        names = [found.name for found in store.backend.walk(".chunks")]
        assert f"{name.removeprefix('.chunks/')}.0.bad" in names


def only_in(store: Datastore, plan: Plan) -> Plan:
    place = store.backend.location.rpartition("/")[2]
    return lambda n, request: plan(n, request) if f"/{place}/" in request.target else None


@pytest.mark.parametrize("file", ["root.pxar.didx", "disk.img.fidx", "index.json.blob"])
def test_a_rotten_previous_snapshot_is_in_nobodys_way(
    site: Site, tmp_path: Path, file: str
) -> None:
    with opened(site) as store:
        site.back_up(store, 1)
        site.break_requests(always_wrong(f"00Z/{file}"))
        fresh = site.back_up(store, 2)
        site.heal()
        site.check_restore(store, fresh, 2, tmp_path)


# Memory


@pytest.mark.timeout(600)
def test_a_backup_through_a_bad_network_stays_in_its_memory(vault: Vault) -> None:
    """200 MB of noise, and every twentieth request fails."""
    vault.disk.write_bytes(noise(7, 200_000_000))
    kinds = ("500", "503", "reset", "lost", "half", "stall")

    def plan(number: int, _: Request) -> Fault | None:
        rng = random.Random(number)
        return FAULTS[rng.choice(kinds)] if rng.random() < 0.05 else None

    vault.site.break_requests(plan)
    command = [PROGRAM, *vault.backup_command(IMAGE, 1), "--read-timeout", "2", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)],
        env=environment(vault.env), stdout=subprocess.PIPE, timeout=300, check=True,
    )  # fmt: skip
    print(f"{int(done.stdout) >> 20} MiB, {len(vault.site.proxy.requests)} requests")
    assert int(done.stdout) < MAX_RESIDENT
    vault.site.heal()
    assert vault.back_up(IMAGE, 2)["new-chunks"] == 0


# A cache on a disk that fails


def spoil_cache(folder: Path) -> None:
    """Truncate every other chunk and flip a bit of the others."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and len(path.name) > 60]
    assert files
    for number, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if number % 2 else data)


def when_the_index_is_read(act: Callable[[], None]) -> Plan:
    """A restore that has opened its cache, and has no chunk yet."""
    done = threading.Event()

    def plan(_: int, request: Request) -> None:
        if "idx" in request.target and not done.is_set():
            done.set()
            act()

    return plan


def test_cache_files_spoilt_under_a_restore(vault: Vault, tmp_path: Path) -> None:
    vault.back_up(IMAGE, 1)
    cache = tmp_path / "cache"
    restore = ("restore", "host/web01", "disk.img", "--cache", cache)
    vault.run(*restore, tmp_path / "first")
    before = len(vault.site.proxy.requests)
    vault.site.break_requests(when_the_index_is_read(lambda: spoil_cache(cache)))
    vault.run(*restore, tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == vault.disk.read_bytes()
    again = [one for one in vault.site.proxy.requests[before:] if "/.chunks/" in one.target]
    assert len(again) == len(vault.chunks())
    before = len(vault.site.proxy.requests)
    vault.run(*restore, tmp_path / "third")
    assert not [one for one in vault.site.proxy.requests[before:] if "/.chunks/" in one.target]


@pytest.mark.needs("fuse", "root")
@pytest.mark.xdist_group("mount")
def test_cache_files_spoilt_under_a_mount(vault: Vault, tmp_path: Path) -> None:
    vault.back_up(IMAGE, 1)
    cache = tmp_path / "cache"
    vault.run("restore", "host/web01", "disk.img", tmp_path / "first", "--cache", cache)
    options = ("-o", f"cache={cache}")
    with mounted(vault.repository, tmp_path / "m", *options, env=vault.env) as mount:  # type: ignore[arg-type]
        spoil_cache(cache)
        assert (mount / "host/web01/latest/disk.img").read_bytes() == vault.disk.read_bytes()


@pytest.mark.needs("root")
def test_a_full_disk_under_a_cache(vault: Vault, tmp_path: Path) -> None:
    """It costs speed, and a warning."""
    vault.back_up(IMAGE, 1)
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", cache], check=True)
    try:
        vault.site.break_requests(when_the_index_is_read(lambda: fill(cache)))
        done = vault.run("restore", "host/web01", "disk.img", tmp_path / "disk", "--cache", cache)
    finally:
        subprocess.run(["umount", cache], check=True)
    assert (tmp_path / "disk").read_bytes() == vault.disk.read_bytes()
    assert [line for line in done.stderr.splitlines() if "warning: " in line] == [
        f"warning: chunk cache {cache}: going on without it: database or disk is full"
    ]


def fill(folder: Path) -> None:
    with (folder / "others").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass

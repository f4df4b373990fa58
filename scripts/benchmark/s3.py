"""The rows of S3: our operations on a server of our own on this machine, with and without latency,
against the server's limit, the same operation on a local disk, and restic on the same server.

Here the server takes its processors from the client, which no real one does. So there is a bound
that no client can pass, the CPU of the server and of the local operation by these processors; and
the rows `-apart`, where server and proxy have the first half of the processors, and whatever they
are measured against, the bare connections and the local operation too, has the other half.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from scripts.benchmark.contenders import Restic, Vaultway
from scripts.benchmark.running import PROGRAM, TOP, Run, cpu_seconds, on_cores, run
from tests.s3_proxy import Proxy, proxy_before
from tests.s3_server import S3Server, running_server

BUCKET = "bench"
CONNECTIONS = 16
LATENCY_S = 0.05
CACHE_SIZE = "8G"
MEMORY_BUDGET_MIB = 300

OURS, RAW, LOCAL, LOWER = "vaultway", "raw server", "vaultway, local", "lower of server and local"
BOUND = "both on shared processors"
S3_ROWS = (
    "s3-backup", "s3-restore", "s3-again", "s3-backup-50ms", "s3-restore-50ms",
    "s3-backup-apart", "s3-restore-apart", "s3-backup-50ms-apart", "s3-restore-50ms-apart",
    "s3-backup-plain", "s3-restore-plain", "s3-cache-miss", "s3-cache-hit", "memory-s3-backup",
    "memory-s3-restore", "cpu-s3-backup", "cpu-s3-restore",
)  # fmt: skip
APART = tuple(row for row in S3_ROWS if row.endswith("-apart"))

Add = Callable[[str, str, float, str], None]


@dataclass(frozen=True)
class Limits:
    """What bounds one operation: MB/s of the image, and CPU seconds.

    raw: the server by bare connections. local: our operation on a local disk.
    """

    raw: float
    local: float
    raw_server_cpu_s: float
    local_cpu_s: float

    @property
    def lower(self) -> float:
        return min(self.raw, self.local)


class S3Vaultway(Vaultway):
    """Ours, with its datastore in a bucket."""

    def __init__(self, work: Path, server: S3Server, endpoint: str, datastore: str) -> None:
        super().__init__(work)
        self.work = work / datastore
        self.key = self.work / "key.json"
        self.url, self.endpoint, self.server = f"s3://{BUCKET}/{datastore}", endpoint, server
        self.options: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        ours = {
            "PBS_REPOSITORY": self.url,
            "VAULTWAY_ENDPOINT": self.endpoint,
            "VAULTWAY_PATH_STYLE": "true",
            "XDG_CONFIG_HOME": str(self.work),
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }
        return self.server.environment | ours | self.options

    def create(self) -> None:
        self.run("datastore", "create", self.url)
        self.run("key", "create", self.key, "--kdf", "none")

    def plain(self, *arguments: object) -> Run:
        return run([PROGRAM, *arguments, "--crypt-mode", "none"], env=self.env)


class S3Restic(Restic):
    """restic on the same server."""

    def __init__(self, work: Path, server: S3Server) -> None:
        super().__init__(work)
        self.server = server

    @property
    def env(self) -> dict[str, str]:
        where = {"RESTIC_REPOSITORY": f"s3:{self.server.endpoint}/{BUCKET}/restic"}
        return super().env | self.server.environment | where


class S3Bench:
    """A server of its own for every round."""

    def __init__(self, work: Path, image: Path, wanted: set[str], add: Add) -> None:
        self.work, self.image, self.wanted, self.add = work / "s3", image, wanted, add
        self.out = self.work / "out.raw"
        self.megabytes = image.stat().st_size / 1e6
        self.work.mkdir(exist_ok=True)
        self.local = Vaultway(self.work)

    def wants(self, *rows: str) -> bool:
        return not self.wanted.isdisjoint(rows)

    def round(self) -> None:
        """Everything once, each time on an empty server."""
        cores = sorted(os.sched_getaffinity(0))
        if not self.wanted <= set(APART):
            with self.server_on(set(cores)) as (server, proxy):
                limits = self.measure_limits(server)
                self.encrypted(server, limits)
                if self.wants("s3-cache-miss", "s3-cache-hit"):
                    self.cached(server, limits["get"])
                if self.wants("s3-backup-50ms", "s3-restore-50ms"):
                    self.with_latency(server, proxy, limits)
                if self.wants("s3-backup-plain", "s3-restore-plain"):
                    self.plain(server)
                self.peer(server)
        half = len(cores) // 2
        if half and self.wants(*APART):
            apart = self.server_on(set(cores[:half]))
            with apart as (server, proxy), on_cores(set(cores[half:])):
                self.apart(server, proxy)

    @contextmanager
    def server_on(self, cores: set[int]) -> Iterator[tuple[S3Server, Proxy]]:
        """A server with our bucket, and a proxy before it that takes its time."""
        folder = self.work / "server"
        folder.mkdir()
        with ExitStack() as stack:
            with on_cores(cores):
                server = stack.enter_context(running_server(folder))
                where = urlparse(server.endpoint)
                assert where.hostname
                assert where.port
                proxy = proxy_before(where.hostname, where.port, delay_s=LATENCY_S)
                proxy = stack.enter_context(proxy)
            server.boto3().create_bucket(Bucket=BUCKET)
            yield server, proxy
        shutil.rmtree(folder)

    def speed(self, seconds: float) -> float:
        return self.megabytes / seconds

    def measure_limits(self, server: S3Server) -> dict[str, Limits]:
        """Of both methods: the server alone, and our local operation alone."""
        self.local.reset()
        done = {"put": self.local.back_up_image(self.image), "get": self.restore(self.local)}
        limits = {}
        for method, local in done.items():
            assert server.pid
            before = cpu_seconds(server.pid)
            raw = self.speed(self.raw(method, server.endpoint, server.environment))
            used = cpu_seconds(server.pid) - before
            limits[method] = Limits(raw, self.speed(local.seconds), used, local.cpu_s)
        return limits

    def raw(self, method: str, endpoint: str, environment: Mapping[str, str]) -> float:
        """Seconds of the server for the image's chunks."""
        command = [
            sys.executable, "-m", "scripts.benchmark.s3_raw", method, endpoint, BUCKET,
            CONNECTIONS, self.local.repository / ".chunks",
        ]  # fmt: skip
        return float(run(command, cwd=TOP, env=environment).output)

    def restore(self, ours: Vaultway) -> Run:
        done = ours.restore_image(self.out)
        self.out.unlink()
        return done

    def against(self, row: str, limits: Limits) -> None:
        for who, speed in ((RAW, limits.raw), (LOCAL, limits.local), (LOWER, limits.lower)):
            self.add(row, who, speed, "MB/s")
        if row not in APART:
            both_s = (limits.raw_server_cpu_s + limits.local_cpu_s) / len(os.sched_getaffinity(0))
            self.add(row, BOUND, self.speed(both_s), "MB/s")

    def resources(self, what: str, done: Run, limits: Limits) -> None:
        """Memory, and CPU seconds for each GB of the image."""
        self.add(f"memory-s3-{what}", OURS, done.peak_mib, "MiB")
        self.add(f"memory-s3-{what}", "budget", MEMORY_BUDGET_MIB, "MiB")
        for who, used in (
            (OURS, done.cpu_s),
            (LOCAL, limits.local_cpu_s),
            (RAW, limits.raw_server_cpu_s),
        ):
            self.add(f"cpu-s3-{what}", who, used / self.megabytes * 1000, "s/GB")

    def encrypted(self, server: S3Server, limits: dict[str, Limits]) -> None:
        """First backup, again, restore."""
        ours = S3Vaultway(self.work, server, server.endpoint, "ours")
        ours.reset()
        done = ours.back_up_image(self.image)
        self.add("s3-backup", OURS, self.speed(done.seconds), "MB/s")
        self.resources("backup", done, limits["put"])
        self.against("s3-backup", limits["put"])
        self.add("s3-again", OURS, ours.back_up_image(self.image).seconds, "s")
        done = self.restore(ours)
        self.add("s3-restore", OURS, self.speed(done.seconds), "MB/s")
        self.resources("restore", done, limits["get"])
        self.against("s3-restore", limits["get"])

    def cached(self, server: S3Server, limits: Limits) -> None:
        """Restore the same through an empty cache, and through the full one."""
        ours = S3Vaultway(self.work, server, server.endpoint, "ours")
        without = self.restore(ours)
        chunks = self.work / "chunks"
        ours.options = {"VAULTWAY_CACHE": str(chunks), "VAULTWAY_CACHE_SIZE": CACHE_SIZE}
        for row in ("s3-cache-miss", "s3-cache-hit"):
            self.add(row, OURS, self.speed(self.restore(ours).seconds), "MB/s")
            self.add(row, "without a cache", self.speed(without.seconds), "MB/s")
            self.add(row, LOCAL, limits.local, "MB/s")
        shutil.rmtree(chunks)

    def with_latency(self, server: S3Server, proxy: Proxy, limits: dict[str, Limits]) -> None:
        """Every request takes 50 ms longer; the limits are those without."""
        ours = S3Vaultway(self.work, server, proxy.endpoint, "slow")
        self.measure(ours, "-50ms", limits)
        for row, method in (("s3-backup-50ms", "put"), ("s3-restore-50ms", "get")):
            slow = self.speed(self.raw(method, proxy.endpoint, server.environment))
            self.add(row, f"{RAW} with 50 ms", slow, "MB/s")

    def measure(self, ours: S3Vaultway, kind: str, limits: dict[str, Limits]) -> None:
        """Backup and restore."""
        ours.reset()
        done = {"put": ours.back_up_image(self.image), "get": self.restore(ours)}
        for row, method in ((f"s3-backup{kind}", "put"), (f"s3-restore{kind}", "get")):
            self.add(row, OURS, self.speed(done[method].seconds), "MB/s")
            self.against(row, limits[method])

    def apart(self, server: S3Server, proxy: Proxy) -> None:
        """All of it with the server on processors of its own."""
        limits = self.measure_limits(server)
        fast = S3Vaultway(self.work, server, server.endpoint, "apart")
        self.measure(fast, "-apart", limits)
        if self.wants("s3-backup-50ms-apart", "s3-restore-50ms-apart"):
            slow = S3Vaultway(self.work, server, proxy.endpoint, "slow-apart")
            self.measure(slow, "-50ms-apart", limits)

    def plain(self, server: S3Server) -> None:
        """Without encryption."""
        ours = S3Vaultway(self.work, server, server.endpoint, "plain")
        ours.reset()
        group = ("--backup-type", "vm", "--backup-id", "1")
        done = ours.plain("backup", f"disk.img:{self.image}", *group)
        self.add("s3-backup-plain", OURS, self.speed(done.seconds), "MB/s")
        done = ours.plain("restore", "vm/1", "disk.img", self.out)
        self.out.unlink()
        self.add("s3-restore-plain", OURS, self.speed(done.seconds), "MB/s")

    def peer(self, server: S3Server) -> None:
        restic, out = S3Restic(self.work, server), self.work / "restored"
        if not restic.installed:
            return
        restic.reset()
        done = restic.back_up_image(self.image)
        self.add("s3-backup", restic.name, self.speed(done.seconds), "MB/s")
        self.add("s3-backup-plain", restic.name, self.speed(done.seconds), "MB/s")
        self.add("s3-again", restic.name, restic.back_up_image(self.image).seconds, "s")
        done = restic.restore_tree(out)
        shutil.rmtree(out)
        self.add("s3-restore", restic.name, self.speed(done.seconds), "MB/s")
        self.add("s3-restore-plain", restic.name, self.speed(done.seconds), "MB/s")

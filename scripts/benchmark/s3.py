"""The rows of S3: our operations on a server of our own on this machine, with and without latency,
against the server's limit, the same operation on a local disk, and restic on the same server."""

import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlparse

from scripts.benchmark.contenders import Restic, Vaultway
from scripts.benchmark.running import PROGRAM, TOP, Run, run
from tests.s3_proxy import Proxy, proxy_before
from tests.s3_server import S3Server, running_server

BUCKET = "bench"
CONNECTIONS = 16
LATENCY_S = 0.05
CACHE_SIZE = "8G"
MEMORY_BUDGET_MIB = 300

OURS, RAW, LOCAL, LOWER = "vaultway", "raw server", "vaultway, local", "lower of server and local"
S3_ROWS = (
    "s3-backup", "s3-restore", "s3-again", "s3-backup-50ms", "s3-restore-50ms",
    "s3-backup-plain", "s3-restore-plain", "s3-cache-miss", "s3-cache-hit", "memory-s3-backup",
    "memory-s3-restore",
)  # fmt: skip

Add = Callable[[str, str, float, str], None]


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
        """Everything once, on an empty server."""
        folder = self.work / "server"
        folder.mkdir()
        with ExitStack() as stack:
            server = stack.enter_context(running_server(folder))
            server.boto3().create_bucket(Bucket=BUCKET)
            limits = self.measure_limits(server)
            self.encrypted(server, limits)
            if self.wants("s3-backup-50ms", "s3-restore-50ms"):
                where = urlparse(server.endpoint)
                assert where.hostname
                assert where.port
                proxy = proxy_before(where.hostname, where.port, delay_s=LATENCY_S)
                self.with_latency(server, stack.enter_context(proxy), limits)
            if self.wants("s3-backup-plain", "s3-restore-plain"):
                self.plain(server)
            self.peer(server)
        shutil.rmtree(folder)

    def speed(self, seconds: float) -> float:
        return self.megabytes / seconds

    def measure_limits(self, server: S3Server) -> dict[str, float]:
        """MB/s of the image: the server alone, our local operation alone, and the lower."""
        self.local.reset()
        speeds = {
            "put-local": self.speed(self.local.back_up_image(self.image).seconds),
            "get-local": self.speed(self.restore(self.local).seconds),
        }
        for method in ("put", "get"):
            speeds[method] = self.speed(self.raw(method, server.endpoint, server.environment))
            speeds[f"{method}-lower"] = min(speeds[method], speeds[f"{method}-local"])
        return speeds

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

    def against(self, row: str, method: str, limits: dict[str, float]) -> None:
        for who, name in ((RAW, method), (LOCAL, f"{method}-local"), (LOWER, f"{method}-lower")):
            self.add(row, who, limits[name], "MB/s")

    def memory(self, what: str, done: Run) -> None:
        self.add(f"memory-s3-{what}", OURS, done.peak_mib, "MiB")
        self.add(f"memory-s3-{what}", "budget", MEMORY_BUDGET_MIB, "MiB")

    def encrypted(self, server: S3Server, limits: dict[str, float]) -> None:
        """First backup, again, restore; then through a cache, twice."""
        ours = S3Vaultway(self.work, server, server.endpoint, "ours")
        ours.reset()
        done = ours.back_up_image(self.image)
        self.add("s3-backup", OURS, self.speed(done.seconds), "MB/s")
        self.memory("backup", done)
        self.against("s3-backup", "put", limits)
        self.add("s3-again", OURS, ours.back_up_image(self.image).seconds, "s")
        done = self.restore(ours)
        self.add("s3-restore", OURS, self.speed(done.seconds), "MB/s")
        self.memory("restore", done)
        self.against("s3-restore", "get", limits)
        if self.wants("s3-cache-miss", "s3-cache-hit"):
            chunks = self.work / "chunks"
            ours.options = {"VAULTWAY_CACHE": str(chunks), "VAULTWAY_CACHE_SIZE": CACHE_SIZE}
            for row in ("s3-cache-miss", "s3-cache-hit"):
                self.add(row, OURS, self.speed(self.restore(ours).seconds), "MB/s")
                self.add(row, "without a cache", self.speed(done.seconds), "MB/s")
                self.add(row, LOCAL, limits["get-local"], "MB/s")
            shutil.rmtree(chunks)

    def with_latency(self, server: S3Server, proxy: Proxy, limits: dict[str, float]) -> None:
        """Every request takes 50 ms longer; the limits are those without."""
        ours = S3Vaultway(self.work, server, proxy.endpoint, "slow")
        ours.reset()
        done = {"put": ours.back_up_image(self.image), "get": self.restore(ours)}
        for row, method in (("s3-backup-50ms", "put"), ("s3-restore-50ms", "get")):
            self.add(row, OURS, self.speed(done[method].seconds), "MB/s")
            self.against(row, method, limits)
            slow = self.speed(self.raw(method, proxy.endpoint, server.environment))
            self.add(row, f"{RAW} with 50 ms", slow, "MB/s")

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

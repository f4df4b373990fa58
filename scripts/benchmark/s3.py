"""The rows of S3: our operations on a server of our own on this machine, with and without latency,
against the server's limit, the same operation on a local disk, and restic on the same server."""

import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
from botocore.config import Config

from scripts.benchmark.contenders import Restic, Vaultway
from scripts.benchmark.running import PROGRAM, TOP, run, running, wait_until
from tests.s3_proxy import Proxy, proxy_before

ACCESS, SECRET = "AKKIT", "SKKITSKKIT"
CONNECTIONS = 16
LATENCY_S = 0.05
CACHE_SIZE = "8G"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
}  # fmt: skip

OURS, RAW, LOCAL, LOWER = "vaultway", "raw server", "vaultway, local", "lower of server and local"
S3_ROWS = (
    "s3-backup", "s3-restore", "s3-again", "s3-backup-50ms", "s3-restore-50ms",
    "s3-backup-plain", "s3-restore-plain", "s3-cache-miss", "s3-cache-hit", "memory-s3-backup",
    "memory-s3-restore",
)  # fmt: skip

Add = Callable[[str, str, float, str], None]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def seaweed(folder: Path) -> Iterator[int]:
    """A SeaweedFS server with its data in `folder`; yields the port of its S3 gateway."""
    folder.mkdir()
    identity = {
        "name": "bench",
        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    command = [
        TOP / ".venv/bin/weed", "server", f"-dir={folder}", "-s3", f"-s3.config={config}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=1024",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={free_port()}" for name in ("s3", "master", "volume", "filer")),
    ]  # fmt: skip
    with running(command) as process:
        wait_until(lambda: _answers(ports["s3"]), process, "the S3 server")
        yield ports["s3"]


def _answers(port: int) -> bool:
    try:
        client(f"http://127.0.0.1:{port}").list_buckets()
    except Exception:  # noqa: BLE001 - not yet
        return False
    return True


def client(endpoint: str) -> "object":
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
    )  # fmt: skip


class S3Vaultway(Vaultway):
    """Ours, with its datastore in a bucket."""

    def __init__(self, work: Path, endpoint: str, bucket: str, *options: object) -> None:
        super().__init__(work)
        self.work = work / bucket
        self.repository = Path("s3")  # a name in the configuration
        self.key = self.work / "key.json"
        self.options, self.bucket = options, bucket
        self.endpoint = endpoint

    @property
    def env(self) -> dict[str, str]:
        return ENVIRONMENT | {
            "PBS_REPOSITORY": f"s3://{self.bucket}/bench",
            "XDG_CONFIG_HOME": str(self.work),
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }

    def run(self, command: object, *arguments: object, cwd: Path | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
        reads_store = str(command) in {"datastore", "backup", "restore"}
        where = ["--endpoint", self.endpoint, "--path-style"] if reads_store else []
        return run([PROGRAM, command, *arguments, *where, *self.options], cwd=cwd, env=self.env)

    def create(self) -> None:
        self.run("datastore", "create", f"s3://{self.bucket}/bench")
        run([PROGRAM, "key", "create", self.key, "--kdf", "none"], env=self.env)


class S3Restic(Restic):
    """restic on the same server."""

    def __init__(self, work: Path, endpoint: str, bucket: str) -> None:
        super().__init__(work)
        self.repository_url = f"s3:{endpoint}/{bucket}"

    @property
    def env(self) -> dict[str, str]:
        return super().env | ENVIRONMENT | {"RESTIC_REPOSITORY": self.repository_url}


class S3Bench:
    """One server for all rounds."""

    def __init__(self, work: Path, image: Path, wanted: set[str], add: Add) -> None:
        self.work, self.image, self.wanted, self.add = work / "s3", image, wanted, add
        self.megabytes = image.stat().st_size / 1e6
        self.local = Vaultway(self.work)
        self.work.mkdir(exist_ok=True)

    def wants(self, *rows: str) -> bool:
        return not self.wanted.isdisjoint(rows)

    def round(self, number: int) -> None:
        """Everything once, on an empty server."""
        with ExitStack() as stack:
            port = stack.enter_context(seaweed(self.work / "server"))
            proxy = stack.enter_context(proxy_before("127.0.0.1", port, delay_s=LATENCY_S))
            direct = f"http://127.0.0.1:{port}"
            for name in ("raw", "ours", "slow", "plain", "restic"):
                client(direct).create_bucket(Bucket=f"{name}-bench")  # type: ignore[attr-defined]
            limits = self.measure_limits(direct)
            self.encrypted(direct, limits)
            self.with_latency(proxy, limits)
            self.plain(direct)
            self.peer(direct)
        shutil.rmtree(self.work / "server")

    def speed(self, seconds: float) -> float:
        return self.megabytes / seconds

    def measure_limits(self, endpoint: str) -> dict[str, float]:
        """MB/s of the image: the server alone, our local operation alone, and the lower."""
        self.local.reset()
        out = self.work / "out.raw"
        speeds = {
            "put-local": self.speed(self.local.back_up_image(self.image).seconds),
            "get-local": self.speed(self.local.restore_image(out).seconds),
        }
        out.unlink()
        for method in ("put", "get"):
            speeds[method] = self.speed(self.raw(method, endpoint))
            speeds[f"{method}-lower"] = min(speeds[method], speeds[f"{method}-local"])
        return speeds

    def raw(self, method: str, endpoint: str) -> float:
        """Seconds of the server for the image's chunks."""
        command = [
            sys.executable, "-m", "scripts.benchmark.s3_raw", method, endpoint, "raw-bench",
            CONNECTIONS, self.local.repository / ".chunks",
        ]  # fmt: skip
        return float(run(command, cwd=TOP, env=ENVIRONMENT).output)

    def against(self, row: str, method: str, limits: dict[str, float]) -> None:
        for who, name in ((RAW, method), (LOCAL, f"{method}-local"), (LOWER, f"{method}-lower")):
            self.add(row, who, limits[name], "MB/s")

    def encrypted(self, endpoint: str, limits: dict[str, float]) -> None:
        """First backup, again, restore; then through a cache, twice."""
        ours, out = S3Vaultway(self.work, endpoint, "ours-bench"), self.work / "out.raw"
        ours.reset()
        done = ours.back_up_image(self.image)
        self.add("s3-backup", OURS, self.speed(done.seconds), "MB/s")
        self.add("memory-s3-backup", OURS, done.peak_mib, "MiB")
        self.add("memory-s3-backup", "budget", 300, "MiB")
        self.against("s3-backup", "put", limits)
        self.add("s3-again", OURS, ours.back_up_image(self.image).seconds, "s")
        done = ours.restore_image(out)
        out.unlink()
        self.add("s3-restore", OURS, self.speed(done.seconds), "MB/s")
        self.add("memory-s3-restore", OURS, done.peak_mib, "MiB")
        self.add("memory-s3-restore", "budget", 300, "MiB")
        self.against("s3-restore", "get", limits)
        if self.wants("s3-cache-miss", "s3-cache-hit"):
            ours.options = ("--cache", self.work / "chunks", "--cache-size", CACHE_SIZE)
            for row in ("s3-cache-miss", "s3-cache-hit"):
                speed = self.speed(ours.restore_image(out).seconds)
                out.unlink()
                self.add(row, OURS, speed, "MB/s")
                self.add(row, "without a cache", self.speed(done.seconds), "MB/s")
                self.add(row, LOCAL, limits["get-local"], "MB/s")
            shutil.rmtree(self.work / "chunks")

    def with_latency(self, proxy: Proxy, limits: dict[str, float]) -> None:
        if not self.wants("s3-backup-50ms", "s3-restore-50ms"):
            return
        ours, out = S3Vaultway(self.work, proxy.endpoint, "slow-bench"), self.work / "out.raw"
        ours.reset()
        speed = self.speed(ours.back_up_image(self.image).seconds)
        self.add("s3-backup-50ms", OURS, speed, "MB/s")
        self.against("s3-backup-50ms", "put", limits)
        speed = self.speed(ours.restore_image(out).seconds)
        out.unlink()
        self.add("s3-restore-50ms", OURS, speed, "MB/s")
        self.against("s3-restore-50ms", "get", limits)
        for row, method in (("s3-backup-50ms", "put"), ("s3-restore-50ms", "get")):
            slow = self.speed(self.raw(method, proxy.endpoint))
            self.add(row, f"{RAW}, 50 ms", slow, "MB/s")

    def plain(self, endpoint: str) -> None:
        """Without encryption."""
        if not self.wants("s3-backup-plain", "s3-restore-plain"):
            return
        ours, out = S3Vaultway(self.work, endpoint, "plain-bench"), self.work / "out.raw"
        ours.reset()
        done = ours.run(
            "backup", f"disk.img:{self.image}", "--backup-type", "vm", "--backup-id", "1"
        )
        self.add("s3-backup-plain", OURS, self.speed(done.seconds), "MB/s")
        done = ours.run("restore", "vm/1", "disk.img", out)
        out.unlink()
        self.add("s3-restore-plain", OURS, self.speed(done.seconds), "MB/s")

    def peer(self, endpoint: str) -> None:
        restic, out = S3Restic(self.work, endpoint, "restic-bench"), self.work / "restored"
        if not restic.installed:
            return
        restic.reset()
        speed = self.speed(restic.back_up_image(self.image).seconds)
        for row in ("s3-backup", "s3-backup-plain"):
            self.add(row, restic.name, speed, "MB/s")
        self.add("s3-again", restic.name, restic.back_up_image(self.image).seconds, "s")
        speed = self.speed(restic.restore_tree(out).seconds)
        shutil.rmtree(out)
        for row in ("s3-restore", "s3-restore-plain"):
            self.add(row, restic.name, speed, "MB/s")

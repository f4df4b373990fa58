"""A real S3 server, SeaweedFS, on loopback: one for a run of tests, a bucket for each test."""

import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import boto3

from store.backends.s3.config import S3Config
from tests.machine import WEED

PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip
READY_WITHIN_S = 60
_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """Where a server is, and what lets one in; `pid` where it is one process of ours."""

    endpoint: str
    access_key: str = "access"
    secret_key: str = field(default="secret-of-the-tests", repr=False)
    pid: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find the credentials itself."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def boto3(self) -> "boto3.client":
        """The original client, to look from outside."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def config(self, bucket: str, datastore: str = "store", **options: object) -> S3Config:
        """The configuration of one datastore."""
        return S3Config(
            bucket,
            datastore,
            endpoint=self.endpoint,
            region="us-east-1",
            path_style=True,
            access_key=self.access_key,
            secret_key=self.secret_key,
            **options,  # type: ignore[arg-type]
        )

    def new_bucket(self) -> str:
        """Make a bucket that nobody else uses, and return its name."""
        bucket = f"test-{os.getpid()}-{next(_numbers)}"
        self.boto3().create_bucket(Bucket=bucket)
        return bucket


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


@contextmanager
def running_server(folder: Path) -> Iterator[S3Server]:
    """A server with its data in `folder`; it dies with its parent, however that dies."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_command(folder, server, ports)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        try:
            _wait(server, process, folder / "log")
            yield replace(server, pid=process.pid)
        finally:
            process.kill()
            process.wait()
            for port in ports.values():  # it puts them there, wherever its data are
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def _command(folder: Path, server: S3Server, ports: dict[str, int]) -> list[str | Path]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    return [
        WEED, "server", "-s3", f"-s3.config={folder / 's3.json'}", f"-dir={folder / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=0",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip


def _wait(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when it makes buckets: its port is open some time before."""
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.boto3().create_bucket(Bucket="ready")
        except Exception:  # noqa: BLE001 - whatever it is that does not work yet
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}")


@contextmanager
def running_ceph(folder: Path) -> Iterator[S3Server]:
    """A real Ceph with its data in memory: a monitor, an OSD and a gateway. Takes 20 s."""
    kit, port = Path(__file__).parent / "kits/s3-ceph.sh", str(free_ports(1)[0])
    try:
        subprocess.run([kit, "start", folder, port], check=True, capture_output=True, timeout=180)
        yield S3Server(f"http://127.0.0.1:{port}", "AKKIT", "SKKITSKKIT")
    finally:
        subprocess.run([kit, "stop", folder], check=False, capture_output=True)

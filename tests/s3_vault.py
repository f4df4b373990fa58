"""The program with a datastore in a bucket, behind a proxy that tests may break."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from store.names import parse_backup_time
from tests.program import PROGRAM, environment, run
from tests.s3_site import DAY, Site
from tests.trees import differences, list_tree

MIB = 1 << 20
IMAGE, LEGACY, DATA, METADATA = "image", "legacy", "data", "metadata"
MODES = (IMAGE, LEGACY, DATA, METADATA)


@dataclass
class Vault:
    """The program with one datastore in the bucket, and something to back up."""

    site: Site
    name: str
    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def repository(self) -> str:
        return f"s3://{self.site.bucket}/{self.name}"

    @property
    def env(self) -> dict[str, str]:
        return {
            **self.site.server.environment,
            "VAULTWAY_ENDPOINT": self.site.proxy.endpoint,
            "VAULTWAY_PATH_STYLE": "true",
            "PBS_REPOSITORY": self.repository,
            "XDG_CACHE_HOME": str(self.folder / "hints"),
        }

    def run(self, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return run(*arguments, env=self.env, expect=expect)

    def back_up(self, mode: str, day: int, *options: object) -> dict[str, object]:
        """Of the tree or the image; what the program says of it."""
        done = self.run(*self.backup_command(mode, day, *options), "--output-format", "json")
        result: dict[str, object] = json.loads(done.stdout)
        return result

    def backup_command(self, mode: str, day: int, *options: object) -> list[object]:
        source = f"disk.img:{self.disk}" if mode == IMAGE else f"root.pxar:{self.source}"
        kind = [] if mode == IMAGE else ["--change-detection-mode", mode]
        times = ["--backup-time", day * DAY, "--backup-id", "web01", "--chunk-size", 256]
        return ["backup", source, *kind, *times, *options]

    def restore(self, mode: str, target: Path, expect: int = 0) -> str:
        """The newest snapshot; what went to stderr."""
        archive = "disk.img" if mode == IMAGE else "root.pxar"
        return self.run("restore", "host/web01", archive, target, expect=expect).stderr

    def check_restore(self, mode: str, target: Path) -> None:
        self.restore(mode, target)
        if mode == IMAGE:
            assert target.read_bytes() == self.disk.read_bytes()
        else:
            assert not differences(list_tree(target), list_tree(self.source))

    def finished(self) -> list[int]:
        """The days of what has a manifest."""
        keys = self.site.keys(f"{self.name}/.cnt/host/web01/")
        found = [key.split("/")[-2] for key in keys if key.endswith("/index.json.blob")]
        return [parse_backup_time(name) // DAY for name in found]

    def snapshots(self) -> list[int]:
        listed = json.loads(self.run("snapshot", "list", "--output-format", "json").stdout)
        return sorted(one["backup-time"] // DAY for one in listed)

    def chunks(self) -> list[str]:
        """Their keys, without the one of zeros that every datastore has."""
        found = self.site.keys(f"{self.name}/.chunks/")
        return [key for key in found if "/bb9f8df61474d25e" not in key]

    def locks(self) -> list[str]:
        return self.site.keys(f"{self.name}/.vaultway/locks/")

    def started(self, *command: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [PROGRAM, *map(str, command)], env=environment(self.env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip


def press_ctrl_c(process: "subprocess.Popen[str]") -> float:
    """Seconds until the program ended, in the way it should."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "vaultway: interrupted"
    return time.monotonic() - began


@contextmanager
def new_vault(site: Site, folder: Path) -> Iterator[Vault]:
    """A datastore, and a tree and an image to back up; the proxy is healed afterwards."""
    made = Vault(site, site.new_name(), folder)
    make_tree(made.source)
    made.disk.write_bytes(noise(1, 9 * MIB) + bytes(4 * MIB) + noise(2, 3 * MIB))
    made.run("datastore", "create", made.repository)
    try:
        yield made
    finally:
        site.heal()


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def make_tree(folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    for number in range(20):
        (folder / f"a/{number}").write_bytes(noise(number, 100_000))
    (folder / "a/b/empty").touch(mode=0o640)
    (folder / "a/link").symlink_to("b/empty")
    os.link(folder / "a/1", folder / "a/b/hard")

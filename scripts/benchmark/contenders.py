"""Vaultway and its peers, each with the same verbs: encrypted, zstd at level 1 or what is nearest
to it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from scripts.benchmark.running import PROGRAM, Run, mounted_by, run


def stored_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(folder)
        for name in names
    )


class Contender:
    """A backup program with its repository and its caches in `work`."""

    name = ""
    program = ""
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, work: Path) -> None:
        self.work = work / self.name
        self.repository = self.work / "repository"

    @property
    def installed(self) -> bool:
        return shutil.which(self.program) is not None

    def reset(self) -> None:
        """An empty repository."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.create()

    def run(self, *arguments: object, cwd: Path | None = None) -> Run:
        return run([self.program, *arguments], cwd=cwd, env=self.env)

    @property
    def env(self) -> dict[str, str]:
        return {key: value.format(work=self.work) for key, value in self.environment.items()}

    def stored(self) -> int:
        return stored_bytes(self.repository)

    def create(self) -> None:
        raise NotImplementedError

    def back_up_tree(self, tree: Path) -> Run:
        raise NotImplementedError

    def back_up_image(self, image: Path) -> Run:
        raise NotImplementedError

    def restore_tree(self, target: Path) -> Run:
        raise NotImplementedError

    def mount(self, mountpoint: Path) -> "contextmanager[Path]":
        """Mount the repository; yields where the newest tree begins."""
        raise NotImplementedError


class Vaultway(Contender):
    """Ours: split archives, metadata mode."""

    name, program = "vaultway", str(PROGRAM)
    environment: ClassVar = {"PBS_REPOSITORY": "{work}/repository", "XDG_CONFIG_HOME": "{work}"}

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.key = self.work / "key.json"
        self.time = 1_700_000_000  # two snapshots of a group can't have the same second

    @property
    def installed(self) -> bool:
        return True

    def create(self) -> None:
        self.run("datastore", "create", self.repository)
        self.run("key", "create", self.key, "--kdf", "none")

    def back_up(self, *arguments: object) -> Run:
        self.time += 60
        return self.run(
            "backup",
            *arguments,
            "--keyfile",
            self.key,
            "--backup-time",
            self.time,
            "--output-format",
            "json",
        )

    def back_up_tree(self, tree: Path) -> Run:
        return self.back_up(
            f"root.pxar:{tree}", "--backup-id", "bench", "--change-detection-mode", "metadata"
        )

    def back_up_image(self, image: Path) -> Run:
        return self.back_up(f"disk.img:{image}", "--backup-type", "vm", "--backup-id", "100")

    def restore_tree(self, target: Path) -> Run:
        return self.run("restore", "host/bench", "root.pxar", target, "--keyfile", self.key)

    def restore_image(self, target: Path) -> Run:
        return self.run("restore", "vm/100", "disk.img", target, "--keyfile", self.key)

    @property
    def image_index(self) -> Path:
        return max((self.repository / "vm/100").glob("*/disk.img.fidx"))

    @contextmanager
    def mount(self, mountpoint: Path, *options: object) -> Iterator[Path]:
        command = [
            PROGRAM,
            "mount",
            self.repository,
            mountpoint,
            "-f",
            "--keyfile",
            self.key,
            *options,
        ]
        with mounted_by(command, mountpoint, self.env):
            yield mountpoint / "host/bench/latest/root.pxar"


class Restic(Contender):
    name = program = "restic"
    environment: ClassVar = {
        "RESTIC_PASSWORD": "bench",
        "RESTIC_REPOSITORY": "{work}/repository",
        "RESTIC_CACHE_DIR": "{work}/cache",
    }

    def create(self) -> None:
        self.run("init")

    def back_up_tree(self, tree: Path) -> Run:
        return self.run("backup", "-q", ".", cwd=tree)

    def back_up_image(self, image: Path) -> Run:
        return self.run("backup", "-q", image)

    def restore_tree(self, target: Path) -> Run:
        return self.run("restore", "-q", "latest", "--target", target)

    @contextmanager
    def mount(self, mountpoint: Path) -> Iterator[Path]:
        with mounted_by([self.program, "mount", mountpoint], mountpoint, self.env):
            yield mountpoint / "snapshots/latest"


class Borg(Contender):
    name = program = "borg"
    environment: ClassVar = {
        "BORG_REPO": "{work}/repository",
        "BORG_PASSPHRASE": "bench",
        "BORG_BASE_DIR": "{work}/base",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }
    count = 0

    def create(self) -> None:
        self.run("init", "-e", "repokey-blake2")

    def archive(self) -> str:
        self.count += 1
        return f"::bench-{self.count}"

    def back_up_tree(self, tree: Path) -> Run:
        return self.run("create", "-C", "zstd,1", self.archive(), ".", cwd=tree)

    def back_up_image(self, image: Path) -> Run:
        return self.run(
            "create", "--chunker-params=fixed,4194304", "-C", "zstd,1", self.archive(), image
        )

    def restore_tree(self, target: Path) -> Run:
        return self.run("extract", f"::bench-{self.count}", cwd=target)

    @contextmanager
    def mount(self, mountpoint: Path) -> Iterator[Path]:
        with mounted_by(
            [self.program, "mount", "-f", "--last", "1", "::", mountpoint], mountpoint, self.env
        ):
            yield mountpoint / f"bench-{self.count}"


class Casync(Contender):
    """Not encrypted: it can't. Its mount is too slow to measure."""

    name = program = "casync"
    options = ("--chunk-size=1048576:4194304:16777216", "--compression=zstd")

    def create(self) -> None:
        self.repository.mkdir()

    @property
    def store(self) -> str:
        return f"--store={self.repository}/bench.castr"

    def back_up_tree(self, tree: Path) -> Run:
        return self.run("make", *self.options, self.store, self.repository / "tree.caidx", tree)

    def back_up_image(self, image: Path) -> Run:
        return self.run("make", *self.options, self.store, self.repository / "image.caibx", image)

    def restore_tree(self, target: Path) -> Run:
        return self.run("extract", self.store, self.repository / "tree.caidx", target)


PEERS = (Restic, Borg, Casync)

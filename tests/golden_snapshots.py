"""What the golden datastore holds: its snapshots, whose tree or disk is in each archive, and the
keys they need."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KEY_PASSWORD = {"PBS_ENCRYPTION_PASSWORD": "key-password"}
KEYS = Path(__file__).parent / "golden/keys"


@dataclass(frozen=True)
class GoldenSnapshot:
    """One snapshot as tests/golden/README.md lists it."""

    group: str
    day: int  # of January 2025; also the revision of its sources
    archives: dict[str, str] = field(
        default_factory=dict
    )  # archive: path below make-source.py's OUT
    mode: str = "legacy"  # change detection
    namespace: str = ""
    key: str = ""
    crypt_mode: str = "none"

    @property
    def time(self) -> str:
        return f"2025-01-{self.day:02d}T00:00:00Z"

    @property
    def name(self) -> str:
        return f"{self.group}/{self.time}"

    @property
    def directory(self) -> str:
        """Relative to the datastore."""
        return "".join(f"ns/{part}/" for part in self.namespace.split("/") if part) + self.name

    @property
    def mount_path(self) -> str:
        """Relative to a mount: namespaces look the same there."""
        return self.directory

    @property
    def options(self) -> list[str]:
        """Command line options that name its namespace and key."""
        namespace = ["--ns", self.namespace] if self.namespace else []
        return namespace + (["--keyfile", str(KEYS / self.key)] if self.key else [])

    def __str__(self) -> str:
        return f"{self.namespace}:{self.name}" if self.namespace else self.name


class GoldenArchive(NamedTuple):
    """One archive of one snapshot, and the path of its source below make-source.py's OUT."""

    snapshot: GoldenSnapshot
    name: str
    source: str

    @property
    def below(self) -> str:
        """The part of the source tree it holds; empty for all of it."""
        return self.source.removeprefix("tree").lstrip("/")

    def __str__(self) -> str:
        return f"{self.snapshot}/{self.name}"


TREE = {"root.pxar": "tree"}
DISK = {"drive-scsi0.img": "disk.raw"}
SCRYPT = {"key": "scrypt.json", "crypt_mode": "encrypt"}
PBKDF2 = {"key": "pbkdf2.json", "crypt_mode": "encrypt"}

SNAPSHOTS = [
    GoldenSnapshot("host/v1", 1, TREE),
    GoldenSnapshot("host/v1", 2, TREE),
    GoldenSnapshot("host/split", 1, TREE, "data"),
    GoldenSnapshot("host/split", 2, TREE, "metadata"),
    GoldenSnapshot("host/split", 3, TREE, "metadata"),
    GoldenSnapshot("host/encrypted", 1, TREE, "data", **SCRYPT),
    GoldenSnapshot("host/encrypted", 2, TREE, "metadata", **SCRYPT),
    GoldenSnapshot(
        "host/signed", 1, {"root.pxar": "tree/many"}, key="scrypt.json", crypt_mode="sign-only"
    ),
    GoldenSnapshot(
        "host/master", 1, {"root.pxar": "tree/many"}, key="none.json", crypt_mode="encrypt"
    ),
    GoldenSnapshot(
        "host/several",
        1,
        {"many.pxar": "tree/many", "names.pxar": "tree/names", "disk.img": "disk.raw"},
    ),
    GoldenSnapshot("vm/100", 1, DISK),
    GoldenSnapshot("vm/100", 2, DISK),
    GoldenSnapshot("vm/101", 1, DISK, **PBKDF2),
    GoldenSnapshot("vm/101", 2, DISK, **PBKDF2),
    GoldenSnapshot("ct/200", 1, {"root.pxar": "tree/names"}, namespace="prod/customer-x"),
    GoldenSnapshot("host/deep", 1, {"root.pxar": "tree/names"}, "data", namespace="a/b/c/d/e/f/g"),
]

BLOBS = {"vm/100": "qemu-server.conf", "vm/101": "qemu-server.conf", "ct/200": "pct.conf"}


def golden_archives(suffix: str) -> list[GoldenArchive]:
    """Every golden archive whose name ends in `suffix` (".pxar", ".img")."""
    return [
        GoldenArchive(snapshot, name, source)
        for snapshot in SNAPSHOTS
        for name, source in snapshot.archives.items()
        if name.endswith(suffix)
    ]

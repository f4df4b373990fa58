"""Which head a writable export opens, and what the user said about it.

`vm/100/current[/ARCHIVE]` is the group's head. `vm/100[/TIME][/ARCHIVE]` is a clone: a head of that
snapshot, beside the group's.
"""

import secrets
from dataclasses import dataclass
from typing import Any, Self

from blockgw.export import select
from store.datastore.datastore import Datastore
from store.errors import InvalidName
from store.format.manifest import CryptMode
from store.heads.sealing.policy import SealPolicy
from store.names import BackupGroup, Namespace, Snapshot, check_safe_id, format_backup_time

CURRENT = "current"
MANUAL = SealPolicy()
TEMPORARY = "export-"
"""How the labels of clones begin that nobody asked to keep."""


@dataclass(frozen=True)
class HeadOptions:
    """What the command line says of heads.

    directory: where they are; None: the default. journal_bytes: room for one's journal; None: the
    default. size: of the image, in bytes, which is made or grown to it; None: as it is.
    """

    seal: SealPolicy = MANUAL
    crypt_mode: CryptMode = CryptMode.NONE
    directory: str | None = None
    journal_bytes: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class HeadSelection:
    """A head, and one archive in it, or all its images.

    clone_of: the snapshot that it is a clone of; None: the group's head. label: the clone's name.
    """

    namespace: Namespace
    group: BackupGroup
    archive: str | None = None
    clone_of: Snapshot | None = None
    label: str = ""
    options: HeadOptions = HeadOptions()

    @property
    def is_temporary(self) -> bool:
        """Whether it is thrown away at the end."""
        return self.label.startswith(TEMPORARY)

    @property
    def moment(self) -> str:
        """What stands between group and archive in an export name."""
        return CURRENT if self.clone_of is None else format_backup_time(self.clone_of.time)

    def __str__(self) -> str:
        return f"{self.group}/{CURRENT}" if self.clone_of is None else f"a clone of {self.clone_of}"

    def encode(self) -> dict[str, Any]:
        """For JSON."""
        options = self.options
        return {
            "namespace": str(self.namespace),
            "group": str(self.group),
            "archive": self.archive,
            "clone_of": self.clone_of and str(self.clone_of),
            "label": self.label,
            "idle_s": options.seal.idle_s,
            "at_end": options.seal.at_end,
            "crypt_mode": options.crypt_mode.value,
            "directory": options.directory,
            "journal_bytes": options.journal_bytes,
            "size": options.size,
        }

    @classmethod
    def decode(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `encode`."""
        clone_of = fields["clone_of"]
        return cls(
            Namespace.parse(fields["namespace"]),
            BackupGroup.parse(fields["group"]),
            fields["archive"],
            Snapshot.parse(clone_of) if clone_of else None,
            fields["label"],
            HeadOptions(
                SealPolicy(fields["idle_s"], fields["at_end"]),
                CryptMode(fields["crypt_mode"]),
                fields["directory"],
                fields["journal_bytes"],
                fields["size"],
            ),
        )


def select_head(
    datastore: Datastore, namespace: Namespace, text: str, label: str, options: HeadOptions
) -> HeadSelection:
    """Read `type/id/current[/archive]`, or what `select` takes, for a clone.

    Args:
        datastore: the snapshot of a clone is looked up here.
        namespace: of the group.
        text: what to export.
        label: to keep a clone by; empty: it gets one, and is thrown away at the end.
        options: passed on.
    Raises:
        InvalidName, NotFound.
    """
    head = _read_current(namespace, text, label, options)
    if head is None:
        found = select(datastore, namespace, text)
        assert found.snapshot is not None
        head = HeadSelection(
            namespace, found.snapshot.group, found.archive, found.snapshot, _label(label), options
        )
    if options.size is not None and head.archive is None:
        raise InvalidName(
            f"--size is of one image: name it, for example {head.group}/current/x.img"
        )
    return head


def _read_current(
    namespace: Namespace, text: str, label: str, options: HeadOptions
) -> HeadSelection | None:
    """The group's head, if that is meant."""
    match text.strip("/").split("/"):
        case [kind, identity, "current"]:
            archive = None
        case [kind, identity, "current", archive]:
            pass
        case _:
            return None
    if label:
        raise InvalidName("--label is of a clone: leave `current` out, or the label")
    return HeadSelection(namespace, BackupGroup(kind, identity), archive, options=options)


def _label(given: str) -> str:
    if not given:
        return f"{TEMPORARY}{secrets.token_hex(4)}"
    if given.startswith(TEMPORARY):
        raise InvalidName(f"label {given!r}: what begins with {TEMPORARY!r} is not kept")
    return check_safe_id(given, "label")

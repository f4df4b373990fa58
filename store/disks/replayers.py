"""The programs that replay journals, what they need, and whether they say that they did."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from store.disks.door import Writable
from store.disks.journals import ntfs_first_records
from store.errors import FormatError

_CHANGED = 1  # e2fsck: "errors corrected"


@dataclass(frozen=True, slots=True)
class Replayer:
    """A program that replays the journal of the file system in a file, in place.

    package: Debian's, that has it.
    arguments: before the file.
    done: what it says when it has, b"" if its exit code tells.
    given_up: what it says when it has not, and ends with 0 all the same.
    good: the bits of its exit code that mean well.
    telling: which line it says tells most when it fails: the first, or the last.
    prepare: what is done to the file system before.
    """

    program: str
    package: str
    arguments: tuple[str, ...] = ()
    done: str = ""
    given_up: str = ""
    good: int = 0
    telling: int = -1
    prepare: Callable[[Writable], None] = lambda _blocks: None

    def complaint(self, code: int, said: str) -> str:
        """One line for people; "" when the journal is replayed."""
        if not code & ~self.good and self.done in said:
            return self.given_up if self.given_up and self.given_up in said else ""
        return (said.strip().splitlines() or ["nothing"])[self.telling][:200]


def _restore_mirror(blocks: Writable) -> None:
    """Copy the first file records of an NTFS to where their copy is.

    Windows writes one after the other, and the backup may have come between; ntfsrecover refuses
    what is not alike.
    """
    try:
        records, mirror, size = ntfs_first_records(blocks.read)
        blocks.write(mirror, blocks.read(records, size))
    except (ValueError, IndexError, struct.error, FormatError):
        return  # it will say what is wrong


E2FSCK = Replayer("e2fsck", "e2fsprogs", ("-y", "-E", "journal_only"), good=_CHANGED)
# A journal of version 2.0 is what Windows 8 and later leave when they are not shut down, or are
# hibernated: what is in memory then is not on the disk, and killing it on an overlay hurts nobody.
NTFSRECOVER = Replayer(
    "ntfsrecover", "ntfs-3g", ("--kill-fast-restart",),
    done="Syncing successful", given_up="Earliest block reached", telling=0,
    prepare=_restore_mirror,
)  # fmt: skip
REPLAYERS = {"ext3": E2FSCK, "ext4": E2FSCK, "ntfs": NTFSRECOVER}

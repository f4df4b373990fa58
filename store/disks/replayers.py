"""The programs that replay journals, and whether they say that they did."""

from dataclasses import dataclass

_CHANGED = 1  # e2fsck: "errors corrected"


@dataclass(frozen=True, slots=True)
class Replayer:
    """A program that replays the journal of the file system in a file, in place.

    package: Debian's, that has it.
    arguments: before the file.
    done: what it says when it has, b"" if its exit code tells.
    given_up: what it says when it has not, and ends with 0 all the same.
    good: the bits of its exit code that mean well.
    """

    program: str
    package: str
    arguments: tuple[str, ...] = ()
    done: str = ""
    given_up: str = ""
    good: int = 0

    def complaint(self, code: int, said: str) -> str:
        """One line for people; "" when the journal is replayed."""
        if not code & ~self.good and self.done in said:
            return self.given_up if self.given_up and self.given_up in said else ""
        return (said.strip().splitlines() or ["nothing"])[-1][:200]


E2FSCK = Replayer("e2fsck", "e2fsprogs", ("-y", "-E", "journal_only"), good=_CHANGED)
# A journal of version 2.0 is what Windows 8 and later leave when they are not shut down, or are
# hibernated: what is in memory then is not on the disk, and killing it on an overlay hurts nobody.
NTFSRECOVER = Replayer(
    "ntfsrecover", "ntfs-3g", ("--kill-fast-restart",),
    done="Syncing successful", given_up="Earliest block reached",
)  # fmt: skip
REPLAYERS = {"ext3": E2FSCK, "ext4": E2FSCK, "ntfs": NTFSRECOVER}

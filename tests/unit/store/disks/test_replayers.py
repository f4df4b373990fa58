"""What programs say that they have replayed, and what they have not."""

import pytest

from store.disks.replayers import REPLAYERS

PLAYED = "* Syncing successful after playing 9 actions\n"
EARLIEST = "* Earliest block reached\n* Syncing successful after playing 0 actions\n"
FAILED = "* Syncing actions failed\n* Syncing failed after playing 1 actions\n"


@pytest.mark.parametrize(
    ("kind", "code", "said", "complaint"),
    [
        ("ext4", 0, "", ""),
        ("ext3", 1, "disk: recovering journal\n", ""),
        ("ext4", 8, "e2fsck: Bad magic number\nin super-block\n", "in super-block"),
        ("ext4", -9, "", "nothing"),
        ("ntfs", 0, PLAYED, ""),
        ("ntfs", 0, "", "nothing"),
        ("ntfs", 0, EARLIEST, "Earliest block reached"),
        ("ntfs", 1, FAILED, "* Syncing actions failed"),
        ("ntfs", 1, "** Unsupported $LogFile version 3.0\n", "** Unsupported $LogFile version 3.0"),
    ],
)
def test_complaints(kind: str, code: int, said: str, complaint: str) -> None:
    assert REPLAYERS[kind].complaint(code, said) == complaint

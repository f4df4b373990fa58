"""Sealing: a head's state of one moment becomes the group's next snapshot.

run        seal_head: freeze, write, verify, announce, stand on it
frozen     a tree as it was at that moment
walk       such a tree into an archive; where each inode went
image      an image into a fixed index: dirty chunks are stored, the others named
rebase     the head's rows, less what the new snapshot has
"""

from store.heads.sealing.run import seal_head

__all__ = ["seal_head"]

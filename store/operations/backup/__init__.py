"""Backup: trees, images and small files become the next snapshot of a group.

request    what is asked for, and what was done
run        one backup from beginning to end
session    the files of a snapshot on its way, for whoever makes one
walk       the source tree, inode by inode:
  listing    the names in a directory           opening    descriptors of what they name
  inode      an inode's facts                   content    a file's bytes
  links      inodes of several names            previous   the tree of the snapshot before
archive    the two forms of a tree archive; its parts are catalog and
  reuse      unchanged payloads of the snapshot before
image      a disk
chunks     hash, compress, encrypt, store, on a pool of threads
"""

from store.operations.backup.request import (
    BackupRequest,
    BackupResult,
    BackupSource,
    ChangeDetectionMode,
)
from store.operations.backup.run import run_backup

__all__ = ["BackupRequest", "BackupResult", "BackupSource", "ChangeDetectionMode", "run_backup"]

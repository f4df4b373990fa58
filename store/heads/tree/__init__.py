"""A tree archive of a head: an inode table over a pxar archive.

inodes       one inode, as it is in memory, in its row, and in an archive
below        the base: entries of the snapshot, and the numbers they have as inodes
table        inodes and names at hand, and their way into the database
listings     the names of a directory, base and changes together
acl          what POSIX ACLs do to modes, and to what is made in a directory
operations   HeadTree: what Tree promises
"""

from store.heads.tree.operations import HeadTree

__all__ = ["HeadTree"]

"""A mount with `-o rw`: `current/` of every group is its head, and what is written there lasts.

open_heads   the heads a mount has open, and when they are sealed
nodes        `current/` and what is in it beside trees
trees        the trees of heads by inode number
files        open files of all kinds
operations   the FUSE handlers
"""

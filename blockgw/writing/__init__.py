"""Writable exports: the images of one head, the group's or a clone's.

selection  which head, and what it is told to do
preparing  the launcher's part: make what is missing, say what is wrong, throw a clone away
held_head  nbdkit's part: the open head, when it is sealed, how it ends
gate       who is inside when it ends
device     one client's view
"""

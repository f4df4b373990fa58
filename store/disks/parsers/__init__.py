"""Reads what is inside disk images, in a child process that can do nothing else.

Parent: process (starts, watches and kills the child), tree (its files as entries).
Child: child (answers requests), sandbox (what it gives up first), and a module for each format.
Both: wire (the frames between them).
"""

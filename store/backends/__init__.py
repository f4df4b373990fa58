"""Objects by name: where the bytes of a datastore are kept.

Each folder's `backend` has its Backend:

local      a directory: local disk, NFS
s3         a bucket
cache      a fast disk, before any other
mirror     several sites with the same datastore
wrappers   before any other: retry, limit, read_only

base       what a Backend is: the Protocol
memory     the shortest one, for tests
chunks     what all of them know of chunks
patience   how long a failing call is worth repeating
turns      turns at the processors
s3_settings  how to talk to a bucket
"""

"""Chunks as they are stored, kept on a fast disk (notes/0013-chunk-cache-on-disk.md).

backend    the Backend before another
disk       the cache itself, which never fails; its parts are
  files      the chunks            database   the SQLite file
  index      which chunks are there, and which goes next
"""

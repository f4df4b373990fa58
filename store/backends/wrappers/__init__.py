"""Backends before another one, of whatever kind.

wrapper     hands every call on; the others are made of it
pausing     what those that wait have in common
retry       calls that failed are made again (notes/0012-retries.md); attempts says for how long
limit       so many bytes and requests a second
read_only   no changes
"""

"""A datastore as one file system (FUSE through pyfuse3, on trio)."""

# Before anything of ours imports pyfuse3: it says why.
from fsgateway import extra_handlers as _extra_handlers  # noqa: F401

"""A datastore as one file system (FUSE through pyfuse3, on trio)."""

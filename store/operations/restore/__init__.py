"""Restoring trees, images and blobs."""

from store.operations.restore.request import RestoreOptions, RestoreResult
from store.operations.restore.run import restore_archive

__all__ = ["RestoreOptions", "RestoreResult", "restore_archive"]

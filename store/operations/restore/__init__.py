"""Restoring trees, images and blobs."""

from store.operations.restore.run import RestoreResult, restore_archive

__all__ = ["RestoreResult", "restore_archive"]

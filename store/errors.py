"""The error classes of Vaultway: one per thing that can go wrong for a user.

Each class carries three numbers, read at the borders only: `errno` (fsgateway, blockgw),
`http` (the server) and `exit_code` (the command line). README.md documents the exit codes.
"""

import errno


class StoreError(Exception):
    """What Vaultway reports instead of a traceback. The message is one line naming the thing."""

    errno = errno.EIO
    http = 500
    exit_code = 1


class InvalidName(StoreError):
    """A name, path or option the rules forbid; the message says which rule."""

    errno = errno.EINVAL
    http = 400
    exit_code = 2


class NotFound(StoreError):
    """No such datastore, namespace, group, snapshot, archive or path in one."""

    errno = errno.ENOENT
    http = 404
    exit_code = 10


class AlreadyExists(StoreError):
    """The datastore, namespace, group, snapshot or target is there already."""

    errno = errno.EEXIST
    http = 400
    exit_code = 10


class PermissionDenied(StoreError):
    """Not the owner, protected, or not allowed by the operating system."""

    errno = errno.EACCES
    http = 403
    exit_code = 11


class Locked(StoreError):
    """Someone else is writing; the message says what they hold."""

    errno = errno.EBUSY
    http = 409
    exit_code = 12


class KeyRequired(StoreError):
    """The data is encrypted and no key was given; the message has the fingerprint it needs."""

    errno = errno.EACCES
    http = 400
    exit_code = 13


class WrongKey(KeyRequired):
    """A key or passphrase was given, and it is another one."""


class FormatError(StoreError):
    """Bytes are not what the format says: where, what was found, what was expected."""

    http = 400
    exit_code = 14


class IntegrityError(StoreError):
    """Well formed but wrong: CRC, tag, signature, digest or size."""

    exit_code = 15


class ChunkMissing(IntegrityError):
    """An index names a chunk that the datastore does not have: damage (EIO), never ENOENT."""


class BackendError(StoreError):
    """The storage below failed.

    `retryable` says whether trying again may help, `retry_after_s` how long the storage asks to
    wait before (None: it does not say).
    """

    exit_code = 16

    def __init__(
        self, message: str, *, retryable: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class OutOfSpace(BackendError):
    """The storage below is full (ENOSPC, EDQUOT)."""

    errno = errno.ENOSPC
    http = 507


class SourceError(StoreError):
    """A file or device to be backed up, or a target to restore to, could not be read or written."""

    exit_code = 17


class Cancelled(Exception):
    """The user stopped the operation; everything half done has been taken back."""

"""What goes wrong on the target's side, as one line that names the path.

And what is only worth a warning.
"""

import errno
from collections.abc import Callable

from store.errors import AlreadyExists, OutOfSpace, PermissionDenied, SourceError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM}

# What a file system or an unprivileged user cannot keep. The content is restored all the same.
_UNSUPPORTED = {
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EINVAL,
}
# Extended attributes that do not fit: ext4 says ENOSPC for them too.
_TOO_LARGE = {errno.ENOSPC, errno.E2BIG, errno.ERANGE}


def show(path: bytes) -> str:
    """Return `path` for a message: one line, whatever bytes it has."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def target_error(error: OSError, path: str) -> StoreError:
    """Return the StoreError for an OSError on the target's side."""
    if error.errno in _FULL:
        return OutOfSpace(f"{path}: no space left on the target")
    if error.errno == errno.EEXIST:
        return AlreadyExists(f"{path}: exists already")
    kind = PermissionDenied if error.errno in _DENIED else SourceError
    return kind(f"{path}: {error.strerror or error}")


class Warnings:
    """Passes warnings on: what concerns every entry alike only once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._said: set[str] = set()
        self.count = 0

    def once(self, topic: str, text: str) -> None:
        """Say `text` unless something was said about `topic` before."""
        if topic not in self._said:
            self._said.add(topic)
            self.say(text)

    def say(self, text: str) -> None:
        self.count += 1
        self._report(text)

    def tolerate(self, error: OSError, feature: str, path: bytes) -> None:
        """Warn once that `feature` can't be kept here; raises the StoreError for anything worse."""
        if error.errno not in _UNSUPPORTED:
            raise target_error(error, show(path)) from error
        self.once(
            feature, f"{show(path)}: {feature} not restored ({error.strerror}), here and below"
        )

    def tolerate_xattr(self, error: OSError, feature: str, path: bytes) -> None:
        """Do the same for an extended attribute, which may also be too large here."""
        if error.errno in _TOO_LARGE:
            self.say(f"{show(path)}: {feature} too large for this file system, not restored")
        else:
            self.tolerate(error, feature, path)

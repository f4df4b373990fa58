"""One snapshot's archive among those of a group: opened when asked, left out when it cannot be."""

import logging
from collections.abc import Callable

from store.errors import FormatError, IntegrityError, KeyRequired, NotFound, StoreError
from store.format.pxar.accessor import Accessor
from store.trees.base import FileTree

log = logging.getLogger(__name__)

# A snapshot of which this is so is left out; the storage being away is everybody's error.
UNREADABLE = (KeyRequired, FormatError, IntegrityError, NotFound)


class Moment:
    """An archive at the time of one snapshot. Thread-safe.

    Attributes:
        label: of the archive, for messages: `host/web01/2026-01-02T03:04:05Z/root.pxar`.
        time: of the snapshot, in seconds since the epoch.
        size: bytes of the archive, or of its metadata stream: no entry's offset reaches it.
        identity: equal for archives that are the same bytes; b"" is nobody's equal.
        error: why it is left out, None while it is not.
    """

    def __init__(
        self,
        label: str,
        time: int,
        size: int,
        open_names: Callable[[], Accessor],
        open_whole: Callable[[], FileTree],
        identity: bytes = b"",
    ) -> None:
        """`open_names` gives the tree without content, `open_whole` all of it; both keep it."""
        self.label, self.time, self.size, self.identity = label, time, size, identity
        self.error: StoreError | None = None
        self._open_names, self.whole = open_names, open_whole
        self._is_reported = False

    def names(self) -> Accessor | None:
        """The tree without content; None if it cannot be read, which is logged once.

        Raises BackendError.
        """
        if self.error is not None:
            return None
        try:
            return self._open_names()
        except UNREADABLE as error:
            self.error = error
            self.report(error)
            return None

    def report(self, error: StoreError) -> None:
        """Something of it is left out: says so the first time. One just forgotten is no news."""
        is_news = not self._is_reported and not isinstance(error, NotFound)
        self._is_reported = True
        log.log(
            logging.WARNING if is_news else logging.DEBUG, "%s: left out: %s", self.label, error
        )

"""A site of a mirror that was away when the mirror was opened."""

import threading
from collections.abc import Callable

from store.backends.base import Backend
from store.backends.wrappers.wrapper import Wrapper
from store.errors import BackendError, NotFound, StoreError


class Late(Wrapper):
    """A Backend that is opened by the first call that reaches it.

    Until then each call tries, and raises BackendError (retryable) where it can't: that nothing is
    to be found there yet says nothing about the object asked for.
    """

    def __init__(
        self,
        location: str,
        reopen: Callable[[], Backend],
        error: StoreError,
        *,
        is_object_store: bool,
    ) -> None:
        """`error` is why it could not be opened so far."""
        self.error = error
        self._is_object_store = is_object_store
        self._location, self._reopen = location, reopen
        self._lock = threading.Lock()
        self._opened: Backend | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Late({self._opened or self._location!r})"

    @property
    def location(self) -> str:
        return self._location

    @property
    def parallelism(self) -> int:
        return 1 if self._opened is None else self._opened.parallelism

    @property
    def is_object_store(self) -> bool:
        return self._is_object_store

    @property
    def inner(self) -> Backend:  # type: ignore[override]  # opened when it is needed
        """The site itself. Raises BackendError, PermissionDenied: it can't be opened."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Backend:
        try:
            backend = self._reopen()
        except NotFound as error:
            raise BackendError(str(error), retryable=True) from error
        if self._is_closed:
            backend.close()
            raise BackendError(f"{self._location}: closed")
        return backend

    def interrupt(self) -> None:
        if self._opened is not None:
            self._opened.interrupt()

    def close(self) -> None:
        self._is_closed = True
        if self._opened is not None:
            self._opened.close()

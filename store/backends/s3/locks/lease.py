"""One lease: the object that claims a lock, its renewal, and how its holder knows that it is lost.

<prefix>host,web01!x.<random>     a claim to hold `host/web01` alone (`s.`: to share it)
"""

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self
from urllib.parse import quote

from store.backends import patience
from store.backends.s3.locks.holder import Holder
from store.errors import BackendError, Locked, PermissionDenied, StoreError
from store.format.buffer import Buffer

log = logging.getLogger(__name__)

TTL_S = 120.0
"""A claim that was not renewed for so long is lost to its holder."""
SLACK_S = 10.0
"""So much later it is dead to others: servers say whole seconds, and may have several clocks."""
RENEW_S = TTL_S / 4
RELEASE_PAUSES_S = (0.2, 1.0)

EXCLUSIVE, SHARED = "x", "s"


class ListedObject(Protocol):
    """One object of a listing; the time is the server's, in seconds since the epoch."""

    @property
    def key(self) -> str: ...
    @property
    def modified_s(self) -> float: ...


class ListedPage(Protocol):
    """One answer of a listing, and when the server gave it."""

    @property
    def objects(self) -> Sequence[ListedObject]: ...
    @property
    def server_time_s(self) -> float: ...


class LockClient(Protocol):
    """What locks need of an S3 client. A listing has to show what was stored before it began."""

    @property
    def server_time_s(self) -> float:
        """When the server gave the last answer that this thread had; -inf before the first."""

    def get(self, key: str) -> bytes: ...
    def put(self, key: str, parts: Sequence[Buffer]) -> None: ...
    def delete(self, key: str) -> None: ...
    def delete_many(self, keys: Sequence[str]) -> None: ...
    def list(self, prefix: str) -> Iterable[ListedPage]: ...


def boot_time() -> float:
    """Seconds since boot, those of sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class LockStore:
    """Where the locks of one datastore are, and how time passes."""

    client: LockClient
    prefix: str
    location: str
    clock: Callable[[], float]
    sleep: Callable[[float], None]


class Claim(NamedTuple):
    """Somebody's claim in a listing. Ordered by who came first, by the server's clock."""

    modified_s: float
    key: str
    age_s: float

    @property
    def left_s(self) -> float:
        """How long it counts yet, if nobody renews it."""
        return TTL_S + SLACK_S - self.age_s


class Lease:
    """One lock (`store.backends.base.Lock`), or the attempt at one. Thread-safe."""

    def __init__(self, store: LockStore, name: str, *, exclusive: bool) -> None:
        """Nothing is stored before `claim`."""
        self.path = f"{store.location}/{name}"
        self._prefix = f"{store.prefix}{quote(name, safe='/:').replace('/', ',')}!"
        self._exclusive = exclusive
        self.key = f"{self._prefix}{EXCLUSIVE if exclusive else SHARED}.{secrets.token_hex(16)}"
        self._store = store
        self._pid = os.getpid()
        self._body = Holder.this_process(time.time()).encode()
        self._renewed_s = store.clock()
        self.modified_s = math.inf
        self.is_over = False
        self.is_stored = True
        """Whether the claim may be in the storage: cleared when that is known to be over."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def claim(self) -> None:
        """Store the claim. Errors of the storage as they are: `release` then takes it back."""
        try:
            self._put()
        except PermissionDenied:
            self.is_stored = False
            raise

    def _put(self) -> None:
        self._store.client.put(self.key, (self._body,))

    def claims(self) -> Iterator[Claim]:
        """All claims of this lock."""
        for page in self._store.client.list(self._prefix):
            for listed in page.objects:
                age_s = page.server_time_s - listed.modified_s
                yield Claim(listed.modified_s, listed.key, age_s)

    def is_excluded_by(self, other: Claim) -> bool:
        """Whether the two cannot be held at once."""
        is_shared = other.key.startswith(f"{self._prefix}{SHARED}.")
        return other.key != self.key and (self._exclusive or not is_shared)

    def check(self) -> None:
        if self._pid != os.getpid():
            raise Locked(f"{self.path}: its lock belongs to process {self._pid}")
        if self.is_over or self._age_s() > TTL_S or self._server_age_s() > TTL_S:
            raise Locked(f"lost the lock of {self.path}: it was not renewed within {TTL_S:.0f} s")

    def confirm(self) -> None:
        self.check()
        with patience.attempt():
            own = self.pick_own(self.claims())
        if own is None:
            raise Locked(f"lost the lock of {self.path}: another has removed its claim")
        self.check()

    def pick_own(self, claims: Iterable[Claim]) -> Claim | None:
        """Our claim among those listed."""
        return next((claim for claim in claims if claim.key == self.key), None)

    def _age_s(self) -> float:
        return self._store.clock() - self._renewed_s

    def _server_age_s(self) -> float:
        """The same by the server's clock, which goes on while a virtual machine stands still."""
        return self._store.client.server_time_s - self.modified_s

    def renew(self) -> None:
        """Store the claim again if it is time. Raises nothing: a failure counts at TTL_S."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self.is_over or self._age_s() < RENEW_S:
                return
            try:
                self._renew()
            except StoreError as error:
                log.info("%s: its lock is not renewed yet: %s", self.path, error)

    def _renew(self) -> None:
        """Both clocks have to say that nobody can have taken us for dead in between.

        The server's, too, because a virtual machine's clock stands still while it is paused.
        """
        if self._age_s() <= TTL_S:
            began_s = self._store.clock()
            self._put()
            own = self.pick_own(self.claims())
            modified_s = math.inf if own is None else own.modified_s
            if self._age_s() <= TTL_S and modified_s - self.modified_s <= TTL_S:
                self._renewed_s, self.modified_s = began_s, modified_s
                return
        log.warning("%s: its lock was lost, it was not renewed within %d s", self.path, TTL_S)
        self._end()

    def release(self) -> None:
        """Give it up, and never raise: a claim that can't be removed now ends by itself.

        A second call does nothing, unless the first was interrupted, or failed: it tries again.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            if self.is_stored or not self.is_over:
                self._end()

    def _end(self) -> None:
        self.is_over = True
        try:
            self._delete()
        except StoreError as error:
            ends_s = TTL_S + SLACK_S
            log.warning("%s: its lock ends by itself in %d s: %s", self.path, ends_s, error)

    def _delete(self) -> None:
        pauses = iter(RELEASE_PAUSES_S)
        while self.is_stored:
            try:
                with patience.attempt():
                    self._store.client.delete(self.key)
                self.is_stored = False
            except BackendError as error:
                pause = next(pauses, None)
                if pause is None or not error.retryable:
                    raise
                patience.current().begin()
                self._store.sleep(pause)

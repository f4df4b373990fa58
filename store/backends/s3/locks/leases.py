"""Locks on an object store: leases that need listings which are up to date, and nothing else.

Who wants a lock stores a *claim*, an object with a name that nobody else ever uses, and then lists
the claims of that lock. Of two at once, at least the one that stored last sees the other; so the
lock is held by whoever finds no claim beside its own that excludes it. The others give theirs up,
and the one that came first waits until they have. Nobody ever replaces or removes what another may
be using: no request, however late it arrives, can hurt. See store/notes/0011-locks-on-s3.md.
"""

import math
import threading
import time
from collections.abc import Callable

from store.backends.s3.locks.holder import Holder
from store.backends.s3.locks.lease import Claim, Lease, LockClient, LockStore, boot_time
from store.errors import BackendError, Locked, NotFound

TICK_S = 5.0
"""How often is looked for leases to be renewed, and a renewal that failed tried again."""
SHARED_PATIENCE_S = 2.0
"""A request to share always waits so long: what it meets may be giving up just now."""
YIELD_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""How long who came first waits for a later claim to be given up."""
FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0


class Leases:
    """All locks that one process holds on one datastore. Thread-safe.

    One thread renews them, from the first lock to `close`. A forked child neither renews nor
    releases what its parent holds.
    """

    def __init__(
        self,
        client: LockClient,
        prefix: str,
        location: str,
        *,
        clock: Callable[[], float] = boot_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`prefix`: of all keys, `<datastore>/.vaultway/locks/`; `location`: for messages."""
        self._store = LockStore(client, prefix, location, clock, sleep)
        self._claimed: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self, name: str, *, exclusive: bool, timeout_s: float = 0) -> Lease:
        """Lock `name`, a path in the datastore: two requests, and one to release it.

        Raises Locked when it was not had within `timeout_s`, or the second or two that it takes
        others to give up; errors of the storage as they are.
        """
        clock = self._store.clock
        deadline = clock() + max(timeout_s, 0 if exclusive else SHARED_PATIENCE_S)
        pause = FIRST_POLL_S
        while True:
            try:
                return self._try_acquire(name, exclusive=exclusive)
            except Locked:
                left = deadline - clock()
                if left <= 0:
                    raise
            self._store.sleep(min(pause, left))
            pause = min(2 * pause, LAST_POLL_S)

    def _try_acquire(self, name: str, *, exclusive: bool) -> Lease:
        lease = Lease(self._store, name, exclusive=exclusive)
        with self._lock:
            self._claimed[lease.key] = lease
        try:
            lease.claim()
            self._prevail(lease)
            self._start_renewing()
        except BaseException:
            lease.release()
            raise
        return lease

    def _prevail(self, lease: Lease) -> None:
        """Return when no other claim excludes `lease`. Raises Locked, and when it took too long."""
        living = self._living(lease)
        own = lease.pick_own(living)
        if own is None:
            raise BackendError(
                f"{lease.path}: a listing does not show what was stored before; locks need a"
                " storage whose listings are up to date",
                retryable=True,
            )
        for rival in filter(lease.is_excluded_by, living):
            self._outlast(rival, own, lease.path)
        lease.modified_s = own.modified_s
        lease.check()

    def _living(self, lease: Lease) -> list[Claim]:
        """All claims of the lock that count, the first comer first. Removes the others."""
        claims = sorted(lease.claims())
        dead = [claim.key for claim in claims if self._is_dead(claim)]
        if dead:
            self._store.client.delete_many(dead)
        return [claim for claim in claims if claim.key not in dead]

    def _is_dead(self, claim: Claim) -> bool:
        """Whether its holder has lost it by now, or could not take it back when it was over."""
        ours = self._claimed.get(claim.key)
        return claim.left_s < 0 or (ours is not None and ours.is_over)

    def _outlast(self, rival: Claim, own: Claim, path: str) -> None:
        """Return when `rival` is gone. Raises Locked: it came first, or stays, so it holds."""
        for pause in (*YIELD_PAUSES_S, None):
            holder = self._living_holder(rival)
            if holder is None:
                return
            if pause is None or rival < own:
                raise Locked(
                    f"{path} is in use by {holder}; if that is dead, it ends by itself"
                    f" in at most {math.ceil(rival.left_s)} s"
                )
            self._store.sleep(pause)

    def _living_holder(self, claim: Claim) -> Holder | None:
        """Whose claim it is; None when it was given up, or its process has died on this host."""
        try:
            holder = Holder.decode(self._store.client.get(claim.key))
        except NotFound:
            return None
        if not holder.has_died():
            return holder
        self._store.client.delete(claim.key)
        return None

    def _start_renewing(self) -> None:
        with self._lock:
            if self._renewer is None or not self._renewer.is_alive():
                self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._renewer.start()

    def _renew(self) -> None:
        while not self._closing.wait(TICK_S):
            self.renew_due()

    def renew_due(self) -> None:
        """Renew the leases whose time it is, and forget those that have left no trace."""
        with self._lock:
            gone = [key for key, lease in self._claimed.items() if not lease.is_stored]
            for key in gone:
                del self._claimed[key]
            leases = list(self._claimed.values())
        for lease in leases:
            lease.renew()

    def close(self) -> None:
        """Release what is still held, and end the thread."""
        self._closing.set()
        with self._lock:
            leases = list(self._claimed.values())
        for lease in leases:
            lease.release()
        if self._renewer is not None:
            self._renewer.join()

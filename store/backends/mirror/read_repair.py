"""Bad and missing copies of a chunk, replaced by a good one from another site."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from store.backends.base import Backend
from store.backends.chunks import is_contradicted, read_sound, set_aside, write_chunk
from store.backends.mirror.sites import PATIENCE_S, Site, Sites
from store.backends.patience import patience
from store.errors import (
    AlreadyExists,
    FormatError,
    IntegrityError,
    NotFound,
    PermissionDenied,
    StoreError,
)
from store.format.buffer import Buffer

log = logging.getLogger(__name__)

REPORTS_KEPT = 10_000
"""Chunks whose trouble was logged and is not logged again; the oldest are forgotten."""

MISSING = "missing"
Judge = Callable[[Backend, str], object]
"""Looks at the copy of a name: NotFound, FormatError or IntegrityError when it is no good."""


class ReadRepair:
    """Replaces copies at the sites of a mirror. Thread-safe; other processes may do the same.

    A copy is looked at just before it is renamed and again after, comes back if it was good (of
    two repairs at once, the other's), and the new one is written with `exclusive`: nobody's good
    copy is ever replaced by a bad one. A process that is killed in between leaves a missing copy,
    which the next read repairs.
    """

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self._lock = threading.Lock()
        self._under_repair: set[str] = set()
        self._reported: OrderedDict[tuple[Site, str], None] = OrderedDict()

    def replace_unsound(self, name: str, sound: Buffer) -> None:
        """Put a copy that passed `read_sound` wherever that says missing or bad. Raises nothing."""
        if not is_contradicted(name, sound):
            self._replace(name, sound, read_sound)

    def replace_others(self, name: str, good: Buffer) -> None:
        """Put a copy that was decoded wherever there is another or none. Raises nothing."""

        def judge(backend: Backend, copy: str) -> None:
            if read_sound(backend, copy) != good:
                raise IntegrityError("well-formed, but its content is wrong (found on decoding it)")

        self._replace(name, good, judge)

    def report(self, site: Site, name: str, trouble: str, *, level: int = logging.WARNING) -> None:
        """Log what is wrong with a copy, once a chunk and site."""
        with self._lock:
            known = (site, name) in self._reported
            self._reported[site, name] = None
            if len(self._reported) > REPORTS_KEPT:
                self._reported.popitem(last=False)
        if not known:
            log.log(level, "chunk %s at %s: %s", name.rpartition("/")[2], site, trouble)

    def _replace(self, name: str, good: Buffer, judge: Judge) -> None:
        with self._alone(name) as alone:
            for site in self._sites.all if alone else ():
                if not site.is_down:
                    with patience(PATIENCE_S):  # a reader waits
                        self._replace_at(site, name, good, judge)

    def _replace_at(self, site: Site, name: str, good: Buffer, judge: Judge) -> None:
        try:
            judge(site.backend, name)
        except NotFound:
            self._put(site, name, good, judge, MISSING)
        except (FormatError, IntegrityError) as error:
            self._put(site, name, good, judge, str(error))
        except StoreError as error:  # nothing is known about the copy: it stays
            log.debug("%s at %s was not looked at: %s", name, site, error)

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Whether no other thread of this process repairs the chunk already."""
        with self._lock:
            alone = name not in self._under_repair
            self._under_repair.add(name)
        try:
            yield alone
        finally:
            if alone:
                with self._lock:
                    self._under_repair.discard(name)

    def _put(self, site: Site, name: str, good: Buffer, judge: Judge, trouble: str) -> None:
        """Set aside what is at a site, write the good copy, and say so."""
        try:
            outcome = _write(site, name, good, judge)
        except PermissionDenied as error:
            site.is_read_only = True
            outcome = f"not repaired: {error}"
        except StoreError as error:
            outcome = f"not repaired: {error}"
        is_lag = trouble == MISSING and not site.is_primary  # synchronisation may still come
        level = logging.INFO if is_lag else logging.WARNING
        self.report(site, name, f"{trouble}; {outcome}", level=level)


def _write(site: Site, name: str, good: Buffer, judge: Judge) -> str:
    """Repair one copy; what came of it, in words. Raises StoreError."""
    if site.is_read_only:
        return "not repaired: the site is read-only"
    kept = ""
    if site.backend.stat(name) is not None:
        aside = set_aside(site.backend, name)
        if _passes(judge, site.backend, aside):
            site.backend.rename(aside, name)
            return "replaced by somebody else meanwhile"
        kept = f", the bad one is kept as {aside.rpartition('/')[2]}"
    try:
        write_chunk(site.backend, name, (good,), exclusive=True, durable=True)
    except AlreadyExists:
        return f"replaced by somebody else meanwhile{kept}"
    return f"replaced by the copy of another site{kept}"


def _passes(judge: Judge, backend: Backend, name: str) -> bool:
    try:
        judge(backend, name)
    except (NotFound, FormatError, IntegrityError):
        return False
    return True

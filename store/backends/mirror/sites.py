"""The sites of a mirror: how far each is, whether it can be reached, which to ask first."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from store.backends.base import Backend
from store.backends.chunks import read_sound
from store.backends.mirror.late import Late
from store.backends.patience import patience
from store.errors import BackendError, StoreError

log = logging.getLogger(__name__)
T = TypeVar("T")
Run = Callable[[Callable[[], None]], None]
"""Does something, beside what the caller does or at once."""

PROBE_S = 30.0
"""How often a site that is not the nearest, or was not to be reached, is asked again."""

PATIENCE_S = 5.0
"""How long a site may fail until another one is asked."""

PROBED = ".lock"
"""What a site is asked for when nothing else is at hand: on S3 it costs a request, always."""

WEIGHT = 0.25
"""Of the newest measurement: a site that has become slow is left after three or four reads."""


class Site:
    """One backend of a mirror and what is known of it.

    Threads share it without a lock: each field is one value, and an estimate that loses a
    measurement is none the worse.
    """

    def __init__(self, backend: Backend, *, is_primary: bool) -> None:
        self.backend = backend
        self.is_primary = is_primary
        self.is_read_only = False  # until a write is refused, nobody knows
        self.is_down = False
        self.latency_s = math.inf
        self.answered = -math.inf
        """When it last did what it was asked."""

        self.due = -math.inf
        """When to ask it for its own sake; one that is down, in the background."""

    def __str__(self) -> str:
        return self.backend.location


def in_background(job: Callable[[], None]) -> None:
    """A thread that does it, and keeps no process from its end."""
    threading.Thread(target=job, name="mirror-probe", daemon=True).start()


class Sites:
    """All sites, the primary first. Thread-safe."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        measured: bool = True,
        clock: Callable[[], float] = time.monotonic,
        run: Run = in_background,
    ) -> None:
        """`measured`: the nearest comes first; else they are asked in the order given."""
        self.all = [Site(backend, is_primary=not n) for n, backend in enumerate(backends)]
        self._measured, self._clock, self._run = measured, clock, run
        self.interrupts = 0
        for site in self.all:
            if isinstance(site.backend, Late):
                self._note_down(site, site.backend.error)

    def primary_first(self) -> list[Site]:
        """For metadata: the primary, or the others while it can't be reached."""
        self._probe_absent(lambda backend: backend.stat(PROBED))
        return sorted(self.all, key=lambda site: site.is_down)

    def nearest_first(self, name: str) -> list[Site]:
        """For the chunk `name`. Now and then the first one is a farther one, to measure it."""
        self._probe_absent(lambda backend: read_sound(backend, name))
        if not self._measured:
            return sorted(self.all, key=lambda site: site.is_down)
        now = self._clock()
        order = sorted(self.all, key=lambda site: (site.is_down, site.latency_s))
        due = next((site for site in self.all if site.due <= now and not site.is_down), None)
        if due is not None:
            order.remove(due)
            order.insert(0, due)
        order[0].due = now + PROBE_S  # one thread measures it, the others do not queue behind
        return order

    def _probe_absent(self, question: Callable[[Backend], object]) -> None:
        """Ask sites that are down, if it is time, whether they are back. Nobody waits for it."""
        now = self._clock()
        for site in self.all:
            if site.is_down and site.due <= now:
                site.due = now + PROBE_S
                self._run(partial(self._probe, site, question))

    def _probe(self, site: Site, question: Callable[[Backend], object]) -> None:
        with suppress(StoreError):
            self.ask(site, question)

    def read_chunk(self, site: Site, name: str) -> bytes:
        """`read_sound` at a site, measured."""
        started = self._clock()
        raw = self.ask(site, lambda backend: read_sound(backend, name))
        took = self._clock() - started
        known = math.isfinite(site.latency_s)
        site.latency_s = site.latency_s + WEIGHT * (took - site.latency_s) if known else took
        return raw

    def ask(self, site: Site, question: Callable[[Backend], T]) -> T:
        """Call a site, and note whether it can be reached. Raises what the call raises, soon."""
        began, interrupts = self._clock(), self.interrupts
        try:
            with patience(PATIENCE_S):
                answer = question(site.backend)
        except BackendError as error:
            # What answers others meanwhile is there: the object is the trouble.
            if error.retryable and site.answered <= began and self.interrupts == interrupts:
                self._note_down(site, error)
            raise
        except StoreError:
            self._note_up(site)
            raise
        self._note_up(site)
        return answer

    def _note_up(self, site: Site) -> None:
        site.answered = self._clock()
        if site.is_down:
            site.is_down = False
            log.info("%s can be reached again", site)

    def _note_down(self, site: Site, error: StoreError) -> None:
        site.due = self._clock() + PROBE_S
        if not site.is_down:
            site.is_down = True
            log.warning("%s can't be reached, other sites are read instead: %s", site, error)

    def interrupt(self) -> None:
        """Make all calls end soon; none of their errors says anything about a site."""
        self.interrupts += 1
        for site in self.all:
            site.backend.interrupt()

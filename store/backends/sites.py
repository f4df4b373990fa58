"""The sites of a mirror: how far each is, whether it can be reached, which to ask first."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from store.backends.base import Backend
from store.backends.chunks import read_sound
from store.errors import BackendError

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_S = 30.0
"""How often a site that is not the nearest, or was not to be reached, is asked again."""

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
        """When to ask it for its own sake."""

    def __str__(self) -> str:
        return self.backend.location

    def is_resting(self, now: float) -> bool:
        """Whether it failed a moment ago, so that asking again would cost another time-out."""
        return self.is_down and now < self.due


class Sites:
    """All sites, the primary first. Thread-safe."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        measured: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measured`: the nearest comes first; else they are asked in the order given."""
        self.all = [Site(backend, is_primary=not n) for n, backend in enumerate(backends)]
        self._measured, self._clock = measured, clock
        self.interrupts = 0

    def primary_first(self) -> list[Site]:
        """For metadata: the primary, or the others while it can't be reached."""
        now = self._clock()
        order = sorted(self.all, key=lambda site: site.is_resting(now))
        self._choose(order[0], now)
        return order

    def nearest_first(self) -> list[Site]:
        """For chunks. Now and then the first one is a farther one, to measure it."""
        now = self._clock()
        if not self._measured:
            return self.primary_first()
        order = sorted(self.all, key=lambda site: (site.is_resting(now), site.latency_s))
        due = next((site for site in self.all if site.due <= now), None)
        if due is not None:
            order.remove(due)
            order.insert(0, due)
        self._choose(order[0], now)
        return order

    @staticmethod
    def _choose(site: Site, now: float) -> None:
        """One thread asks a site for its own sake; the others need not queue behind it."""
        site.due = now + PROBE_S

    def read_chunk(self, site: Site, name: str) -> bytes:
        """`read_sound` at a site, measured."""
        started = self._clock()
        raw = self.ask(site, lambda backend: read_sound(backend, name))
        took = self._clock() - started
        known = math.isfinite(site.latency_s)
        site.latency_s = site.latency_s + WEIGHT * (took - site.latency_s) if known else took
        return raw

    def ask(self, site: Site, question: Callable[[Backend], T]) -> T:
        """Call a site, and note whether it can be reached. Raises what the call raises."""
        began, interrupts = self._clock(), self.interrupts
        try:
            answer = question(site.backend)
        except BackendError as error:
            # What answers others meanwhile is there: the object is the trouble.
            if error.retryable and site.answered <= began and self.interrupts == interrupts:
                self._note_down(site, error)
            raise
        site.answered = self._clock()
        if site.is_down:
            site.is_down = False
            log.info("%s can be reached again", site)
        return answer

    def _note_down(self, site: Site, error: BackendError) -> None:
        site.due = self._clock() + PROBE_S
        if not site.is_down:
            site.is_down = True
            log.warning("%s can't be reached, other sites are read instead: %s", site, error)

    def interrupt(self) -> None:
        """Make all calls end soon; none of their errors says anything about a site."""
        self.interrupts += 1
        for site in self.all:
            site.backend.interrupt()

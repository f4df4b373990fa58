"""How far an operation is, on stderr: a bar on a terminal, now and then a line elsewhere."""

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from store.cli.output import human_size
from store.progress import SILENT

if TYPE_CHECKING:
    from store.progress import Progress

REDRAW_S = 0.2  # five times a second is as fast as anybody reads
LINE_S = 10.0


def make_progress(*, quiet: bool = False) -> "Progress":
    """Return what fits stderr: a bar, plain lines, or nothing at all when `quiet`."""
    if quiet:
        return SILENT
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def write_line(text: str) -> None:
    """Print a line on stderr, above the bar if there is one. Safe from any thread.

    A log on a full disk, or one that nobody reads any more, is no reason to end a backup.
    """
    tqdm = sys.modules.get("tqdm")
    with contextlib.suppress(OSError):
        if tqdm is not None:
            tqdm.tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class _Paced:
    """Collects advances from any thread, and draws at most once an interval."""

    interval_s = REDRAW_S
    wants_total = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = 0
        self._next = 0.0

    def start(self, total: int | None, unit: str) -> None:
        """A stretch of work begins."""
        with self._lock:
            self._pending = 0
            self._next = time.monotonic() + self.interval_s
            self._begin(total, unit)

    def expect(self, total: int) -> None:
        """It will be about `total`."""
        with self._lock:
            self._set_total(total)

    def advance(self, amount: int) -> None:
        """`amount` more is done."""
        with self._lock:
            self._pending += amount
            now = time.monotonic()
            if now >= self._next:
                self._flush(now)

    def done(self) -> None:
        """The stretch ended."""
        with self._lock:
            self._flush(time.monotonic())
            self._end()

    def _flush(self, now: float) -> None:
        amount, self._pending = self._pending, 0
        self._next = now + self.interval_s
        self._draw(amount, now)

    def _begin(self, total: int | None, unit: str) -> None:
        raise NotImplementedError

    def _set_total(self, total: int) -> None:
        raise NotImplementedError

    def _draw(self, amount: int, now: float) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class BarProgress(_Paced):
    """A bar with rate and remaining time."""

    wants_total = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None

    def _begin(self, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        self._end()
        tqdm.monitor_interval = 0  # no thread of its own: we draw
        self._bar = tqdm(
            total=total,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=True,
            unit_divisor=1024 if unit == "B" else 1000,
            mininterval=0,
            miniters=0,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def _set_total(self, total: int) -> None:
        if self._bar is not None:
            self._bar.total = total

    def _draw(self, amount: int, now: float) -> None:
        if self._bar is not None:
            self._bar.update(amount)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LineProgress(_Paced):
    """A plain line every ten seconds, for logs and mail."""

    interval_s = LINE_S

    def __init__(self) -> None:
        super().__init__()
        self._total: int | None = None
        self._unit = "B"
        self._count = 0
        self._started = 0.0
        self._ended = True

    def _begin(self, total: int | None, unit: str) -> None:
        self._total, self._unit, self._count = total, unit, 0
        self._started, self._ended = time.monotonic(), False

    def _set_total(self, total: int) -> None:
        self._total = total

    def _draw(self, amount: int, now: float) -> None:
        self._count += amount
        elapsed = now - self._started
        if not self._ended and elapsed >= self.interval_s:
            write_line(self._line(elapsed))

    def _end(self) -> None:
        self._ended = True

    def _line(self, elapsed: float) -> str:
        rate = self._count / elapsed
        parts = [self._amount(self._count)]
        if self._total:
            parts[0] += f" of {self._amount(self._total)} ({100 * self._count // self._total} %)"
        parts.append(f"{self._amount(rate)}/s")
        if self._total and rate:
            left = max(0, self._total - self._count) / rate
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return ", ".join(parts)

    def _amount(self, count: float) -> str:
        return human_size(round(count), 1) if self._unit == "B" else f"{count:.0f} {self._unit}"

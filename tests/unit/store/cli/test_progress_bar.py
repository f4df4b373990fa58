"""Progress: few lines, right numbers, any thread."""

import contextlib
import sys
import threading

import pytest

from store.cli import progress_bar
from store.cli.progress_bar import BarProgress, LineProgress, make_progress, write_line
from store.progress import SILENT


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_bar.time, "monotonic", clock)
    return clock


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_progress(quiet=True) is SILENT
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(make_progress(), BarProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(make_progress(), LineProgress)


def test_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.start(100 << 20, "B")
    for _ in range(40):
        clock.now += 0.5
        progress.advance(1 << 20)
    progress.done()
    assert capsys.readouterr().err.splitlines() == [
        "20 MiB of 100 MiB (20 %), 2 MiB/s, 0:40 left",
        "40 MiB of 100 MiB (40 %), 2 MiB/s, 0:30 left",
        "40 MiB of 100 MiB (40 %), 2 MiB/s, 0:30 left",
    ]


def test_a_total_that_becomes_known(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarProgress()
    bar.start(None, "B")
    clock.now += 1
    bar.advance(1 << 20)
    bar.expect(4 << 20)
    clock.now += 1
    bar.advance(1 << 20)
    assert "2.00M/4.00M" in capsys.readouterr().err
    bar.done()


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.start(None, "files")
    clock.now += 3
    progress.advance(7)
    progress.done()
    assert capsys.readouterr().err == ""


def test_unknown_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.start(None, "files")
    clock.now += 20
    progress.advance(100)
    assert capsys.readouterr().err == "100 files, 5 files/s\n"


def test_bar_draws_five_times_a_second_at_most(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = BarProgress()
    progress.start(1000, "B")
    draws = []
    monkeypatch.setattr(progress._bar, "update", draws.append)
    for _ in range(1000):
        clock.now += 0.001
        progress.advance(1)
    progress.done()
    assert sum(draws) == 1000
    assert len(draws) <= 6


def test_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    progress = BarProgress()
    progress.start(8000, "chunks")
    bar = progress._bar
    threads = [
        threading.Thread(target=lambda: [progress.advance(1) for _ in range(1000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write_line("a warning in between")
    progress.done()
    assert bar.n == 8000
    assert "a warning in between\n" in capsys.readouterr().err


def test_two_stretches_and_advances_outside(capsys: pytest.CaptureFixture[str]) -> None:
    progress = BarProgress()
    progress.advance(1)
    progress.start(10, "B")
    progress.start(5, "B")
    progress.done()
    progress.done()
    progress.advance(1)


def test_a_log_on_a_full_disk_ends_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        write_line("warning: something")
        progress = LineProgress()
        progress.start(100, "B")
        clock.now += 20
        progress.advance(50)
        progress.done()
        with contextlib.suppress(OSError):
            full.close()

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from store.disks.microvm.accelerator import Accelerator
from store.disks.microvm.pool import Pool
from store.errors import BackendError, InvalidName


class Fake:
    """Something that runs."""

    def __init__(self) -> None:
        self.stopped = Event()

    def stop(self) -> None:
        self.stopped.set()


def test_the_one_not_needed_for_longest_makes_room() -> None:
    pool, (first, second, third) = Pool(limit=2), (Fake(), Fake(), Fake())
    for guest in (first, second, first):
        with pool.held(guest):
            pass
    with pool.held(third):
        assert second.stopped.is_set()
    assert not first.stopped.is_set()


def test_used_ones_are_waited_for_and_not_stopped() -> None:
    pool, (first, second) = Pool(limit=1), (Fake(), Fake())
    entered = Event()

    def use() -> None:
        with pool.held(second):
            entered.set()

    with ThreadPoolExecutor(1) as threads:
        with pool.held(first):
            waiting = threads.submit(use)
            assert not entered.wait(0.05)
            assert not first.stopped.is_set()
        waiting.result(10)
    assert first.stopped.is_set()


def test_waiting_ends() -> None:
    pool = Pool(limit=1, patience_s=0.01)
    with pool.held(Fake()), pytest.raises(BackendError, match="all 1 micro-VMs are busy"):
        pool._enter(Fake())


def test_idle_ones_are_stopped() -> None:
    pool, (first, second) = Pool(idle_s=0.02), (Fake(), Fake())
    with pool.held(first):
        with pool.held(second):
            pass
        assert second.stopped.wait(10)
        assert not first.stopped.is_set()
    assert first.stopped.wait(10)
    pool.leave(first)  # and does no harm


def test_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAULTWAY_ACCEL", raising=False)
    assert Accelerator().name == "tcg"
    monkeypatch.setenv("VAULTWAY_ACCEL", "kvm")
    chosen = Accelerator()
    assert (chosen.name, chosen.failed(), chosen.boot_timeout_s) == ("kvm", False, 120)
    monkeypatch.setenv("VAULTWAY_ACCEL", "xen")
    with pytest.raises(InvalidName, match="may be tcg, kvm or auto"):
        Accelerator()


def test_kvm_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.disks.microvm.accelerator.DEVICE", "/dev/null")
    works, hangs = Accelerator("auto"), Accelerator("auto")
    assert (works.name, works.boot_timeout_s) == ("kvm", 15)
    works.works()
    assert (works.name, works.boot_timeout_s, works.failed()) == ("kvm", 120, False)
    assert hangs.failed()
    assert (hangs.name, hangs.failed()) == ("tcg", False)
    monkeypatch.setattr("store.disks.microvm.accelerator.DEVICE", "/dev/none")
    assert Accelerator("auto").name == "tcg"

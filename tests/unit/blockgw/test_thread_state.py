"""Threads of C keep their Python state from one entry to the next, and no longer than they live.

In a child process, where a mistake shows as a crash.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, gc, sys, threading, weakref
from blockgw.thread_state import KeptState, keep_thread_state, keep_thread_state_to_its_end
from blockgw.thread_state import let_go_of_thread_state

mode = sys.argv[1]
libc = ctypes.CDLL(None)
libc.pthread_create.argtypes = (ctypes.c_void_p,) * 4
libc.pthread_join.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
at_exit = libc["__cxa_thread_atexit_impl"]  # the last hook registered runs first
at_exit.argtypes = (ctypes.c_void_p,) * 3
state, local = KeptState(), threading.local()
canaries, remembered = [], []

class Canary:
    pass

def first_entry(_):
    assert not state.kept
    if mode == "to its end":
        keep_thread_state_to_its_end(state)
    if mode == "until let go":
        keep_thread_state(state)
    local.canary = Canary()
    canaries.append(weakref.ref(local.canary))
    at_exit(second, None, ctypes.cast(libc.abort, ctypes.c_void_p))

def second_entry(_):
    remembered.append(hasattr(local, "canary"))
    assert state.kept == remembered[-1]
    if mode == "until let go":
        let_go_of_thread_state(state)

first = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(first_entry)
second = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(second_entry)
for _ in range(25):
    threads = [ctypes.c_ulong() for _ in range(8)]
    for thread in threads:
        libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(first, ctypes.c_void_p), None)
    for thread in threads:
        libc.pthread_join(thread, None)
gc.collect()
alive = sum(canary() is not None for canary in canaries)
print(len(canaries), sum(remembered), alive, len(sys._current_frames()))
"""


@pytest.mark.parametrize(
    ("mode", "remembered"), [("to its end", 200), ("until let go", 200), ("never", 0)]
)
def test_state_lives_as_long_as_its_thread(mode: str, remembered: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [int(number) for number in done.stdout.split()] == [200, remembered, 0, 1]

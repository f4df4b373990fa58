"""Keep one Python thread state per nbdkit thread, instead of making one per request.

nbdkit's Python plugin enters Python with PyGILState_Ensure and leaves with PyGILState_Release. In
a thread that Python did not start, each such pair makes and destroys a thread state, and maps and
unmaps the memory of the interpreter's stack: more work than all the rest of a small read. One more
Ensure per thread keeps its state, until one more Release. All of it is Python's public C
interface; the figures are in store/notes/0009-nbd-thread-model.md.
"""

import ctypes
import threading

PYGILSTATE_LOCKED = 0

_libc = ctypes.CDLL(None)
# C++'s hook for thread_local objects. glibc runs it before it clears the pthread keys, in one of
# which Python keeps the state; a destructor of a key of ours would run after. Not in musl: there
# each request makes its own thread state, slower but right.
_at_thread_exit = getattr(_libc, "__cxa_thread_atexit_impl", None)
_symbol_of_libc = ctypes.cast(_libc.abort, ctypes.c_void_p)
if _at_thread_exit is not None:
    _at_thread_exit.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class KeptState(threading.local):
    """`kept` says whether the calling thread's state stays; it goes with the state."""

    kept = False


def keep_thread_state(state: KeptState) -> None:
    """Keep the calling thread's state until `let_go_of_thread_state`, and note that in `state`.

    For threads that Python did not start.
    """
    state.kept = True
    ctypes.pythonapi.PyGILState_Ensure()


def let_go_of_thread_state(state: KeptState) -> None:
    """Undo `keep_thread_state`, in the same thread."""
    state.kept = False
    ctypes.pythonapi.PyGILState_Release(PYGILSTATE_LOCKED)


def keep_thread_state_to_its_end(state: KeptState) -> None:
    """Keep the calling thread's state until the thread ends, and note that in `state`.

    For threads that Python did not start, and that end before Python does.
    """
    state.kept = True
    if _at_thread_exit is None:
        return
    ctypes.pythonapi.PyGILState_Ensure()
    if _at_thread_exit(_release_callback, None, _symbol_of_libc) != 0:
        ctypes.pythonapi.PyGILState_Release(PYGILSTATE_LOCKED)


def _release(_: int | None) -> None:
    """The thread ends. ctypes holds a reference around this call, so ours is not the last."""
    ctypes.pythonapi.PyGILState_Release(PYGILSTATE_LOCKED)


_release_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_release)

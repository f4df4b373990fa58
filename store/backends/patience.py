"""How long a call may take to fail, where another site can be asked instead (notes/0014-mirror.md).

It holds for all that a thread calls inside, through any wrapper: `Retry` gives up then, and
connections take it for their time-outs. A call that makes headway is not ended.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SECONDS: ContextVar[float] = ContextVar("patience", default=math.inf)


def patience_s() -> float:
    """That of the calling thread, in seconds; infinite where nothing was said."""
    return _SECONDS.get()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Calls inside have so much of it, or less where there was less already."""
    token = _SECONDS.set(min(seconds, _SECONDS.get()))
    try:
        yield
    finally:
        _SECONDS.reset(token)

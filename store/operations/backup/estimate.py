"""How many bytes a tree has, found out beside its backup: with it a bar knows when it ends."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from store.progress import Progress


@contextmanager
def estimated(path: str, progress: Progress) -> Iterator[None]:
    """Look through the tree at `path` while the block runs; tell `progress` the sum of its files.

    An estimate: patterns are not applied, and only the file system of `path` is looked at.
    """
    if not progress.wants_total:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_add_up, args=(path, stop, progress.expect), name="estimate")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _add_up(path: str, stop: threading.Event, tell: Callable[[int], None]) -> None:
    total, linked, waiting = 0, set[int](), [path]
    with suppress(OSError):  # what cannot be read, the backup itself will name
        device = os.stat(path).st_dev
        while waiting:
            for info, where in _children(waiting.pop()):
                if stop.is_set():
                    return
                if info.st_dev != device:
                    continue
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(where)
                elif stat.S_ISREG(info.st_mode) and info.st_ino not in linked:
                    total += info.st_size
                    if info.st_nlink > 1:
                        linked.add(info.st_ino)
        tell(total)


def _children(path: str) -> Iterator[tuple[os.stat_result, str]]:
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                yield entry.stat(follow_symlinks=False), entry.path

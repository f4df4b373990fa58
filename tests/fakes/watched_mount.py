"""A mount whose reads of chunks are counted, and fail or wait as long as a file says so.

usage: watched_mount.py REPOSITORY MOUNTPOINT FOLDER [OPTIONS]

FOLDER/reads gets a line for each chunk read. While FOLDER/away is there they fail; while
FOLDER/hang is there they do not come back.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY, MOUNTPOINT, FOLDER = (Path(argument).absolute() for argument in sys.argv[1:4])
OPTIONS = sys.argv[4:]
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fsgateway.mount import MountRequest, serve  # noqa: E402
from fsgateway.options import parse_options  # noqa: E402
from store.backends.local.backend import LocalBackend  # noqa: E402
from store.errors import BackendError  # noqa: E402
from store.repositories.repository import open_datastore  # noqa: E402

READS = os.open(FOLDER / "reads", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(backend: Any, name: str, *arguments: Any) -> Any:
        if name.startswith(".chunks/"):
            os.write(READS, name.encode() + b"\n")
            while (FOLDER / "hang").exists():
                time.sleep(0.02)
            if (FOLDER / "away").exists():
                raise BackendError("the storage is away: injected")
        return function(backend, name, *arguments)

    return call


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    for name in ("read", "read_into", "read_range", "map"):
        setattr(LocalBackend, name, watched(getattr(LocalBackend, name)))
    request = MountRequest(str(REPOSITORY), MOUNTPOINT, parse_options(OPTIONS))
    memory = request.options.repository.get("memory")
    with open_datastore(str(REPOSITORY)) as datastore:
        if memory is not None:
            datastore.memory_bytes = memory.value
        serve(request, datastore, lambda: None)


main()

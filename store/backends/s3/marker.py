"""The in-use marker: whose bucket it is (spec maintenance.md 1.4).

`<store>/.in-use` is `{"hostname":"<host>"}`. Ours name `vaultway@<host>`: any number of us may use
one bucket, but a PBS thinks that it is alone, and works from a copy of its own.
"""

import json
import socket

from store.format.buffer import Buffer

OURS = "vaultway@"


def make_marker() -> bytes:
    """The marker of a datastore that this host made."""
    return json.dumps({"hostname": OURS + socket.gethostname()}, separators=(",", ":")).encode()


def foreign_holder(marker: Buffer) -> str | None:
    """Why not to write: a PBS that the marker names. None when it is ours.

    What is no marker counts as somebody's.
    """
    try:
        host = json.loads(bytes(marker))["hostname"]
    except (ValueError, TypeError, KeyError):
        return "its in-use marker is damaged, a PBS may use it"
    return (
        None if isinstance(host, str) and host.startswith(OURS) else f"held by the PBS on {host!r}"
    )

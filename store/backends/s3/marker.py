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


def foreign_host(marker: Buffer) -> str | None:
    """Which PBS a marker names; None when it is ours. What is no marker counts as somebody's."""
    try:
        host = json.loads(bytes(marker))["hostname"]
    except (ValueError, TypeError, KeyError):
        return "somebody: its in-use marker is damaged"
    return None if isinstance(host, str) and host.startswith(OURS) else f"the PBS on {host!r}"

"""Telling systemd how a service is (sd_notify): `Type=notify` in its unit."""

import logging
import os
import socket

log = logging.getLogger(__name__)

PLACE = "NOTIFY_SOCKET"


def notify(*states: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `STATUS=…`; without a service manager nothing happens."""
    place = os.environ.get(PLACE)
    if not place:
        return
    address = f"\0{place[1:]}" if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            channel.sendall("\n".join(states).encode(errors="replace"))
    except OSError as error:
        log.warning("%s %s: %s", PLACE, place, error)


def forget() -> None:
    """For a process in the background: it is not the one that the service manager asked."""
    os.environ.pop(PLACE, None)

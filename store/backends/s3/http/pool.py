"""The connections to one endpoint."""

import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException

from store.backends.s3.config import S3Config
from store.backends.s3.http.access import Endpoint
from store.backends.s3.http.connection import Answer, Connection, Request, StaleConnectionError
from store.backends.s3.http.errors import transport_error
from store.backends.s3.tls import make_context
from store.errors import BackendError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What went over the wire: requests by method, bytes of bodies."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    bytes_received: int = 0

    def __str__(self) -> str:
        """`12 requests (GET 10, PUT 2), 300 bytes sent, 4000 received`."""
        methods = ", ".join(f"{name} {count}" for name, count in sorted(self.requests.items()))
        requests = f"{self.requests.total()} requests{f' ({methods})' if methods else ''}"
        return f"{requests}, {self.bytes_sent} bytes sent, {self.bytes_received} received"


class Pool:
    """Keep-alive connections. Thread-safe.

    There are as many as requests at once, and `config.connections` of them are kept. Nobody waits
    for one: the renewal of a lease must not stand behind sixteen slow uploads.
    """

    def __init__(self, endpoint: Endpoint, config: S3Config) -> None:
        """Raises InvalidName: the CA file can't be read."""
        self._endpoint, self._config = endpoint, config
        self._context = (
            make_context(endpoint.ca_file, config.fingerprint) if endpoint.is_secure else None
        )
        self.counters = Counters()
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._is_closed = False

    def exchange(self, request: Request) -> Answer:
        """Send a request over a free connection, or a new one, and read the whole answer.

        One that the server closed while it was idle is replaced, once.

        Raises BackendError, OutOfSpace (of TMPDIR), FormatError (an answer beyond the limit).
        """
        connection = self._take_idle()
        if connection is not None:
            with suppress(StaleConnectionError):
                return self._exchange(connection, request)
        return self._exchange(Connection(self._endpoint, self._config, self._context), request)

    def _take_idle(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.is_stale:
                return connection
            connection.close()

    def _exchange(self, connection: Connection, request: Request) -> Answer:
        with self._lock:
            self._busy.add(connection)
        began, outcome = time.perf_counter(), "no answer"
        try:
            answer = connection.exchange(request)
            outcome = str(answer.status)
        except (OSError, HTTPException) as error:
            if connection.was_interrupted:
                raise BackendError(f"{request.what}: interrupted") from error
            raise transport_error(error, request.what, self._endpoint.host_header) from error
        finally:
            self._give_back(connection)
            took_ms = 1000 * (time.perf_counter() - began)
            log.debug("%s %s: %s, %.1f ms", request.method, request.what, outcome, took_ms)
        self._count(request, answer)
        return answer

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
            usable = connection.is_reusable and not connection.was_interrupted
            keep = usable and not self._is_closed
            if keep and len(self._idle) < self._config.connections:
                self._idle.append(connection)
                return
        connection.close()

    def _count(self, request: Request, answer: Answer) -> None:
        with self._lock:
            self.counters.requests[request.method] += 1
            self.counters.bytes_sent += sum(len(part) for part in request.parts)
            self.counters.bytes_received += len(answer.body)

    def interrupt(self) -> None:
        """Make the requests of other threads end, with BackendError; later ones work."""
        with self._lock:
            for connection in self._busy:
                connection.interrupt()

    def close(self) -> None:
        """Close the idle connections, those in use after it; say what went over all."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        log.debug("%s: %s", self._endpoint, self.counters)

"""What the launcher tells the plugin: through a pipe, never on a command line or a disk."""

import json
from dataclasses import dataclass, field

from blockgw.export import Selection
from store.names import Namespace, Snapshot

MAX_PIPE_BYTES = 65536  # what a pipe takes before anybody reads it


@dataclass(frozen=True)
class Settings:
    """`key` is the raw key (32 bytes), `cache_size` the budget for decoded chunks in bytes.

    `threads` is how many requests of one connection are served at once.
    """

    repository: str
    selection: Selection
    cache_size: int
    threads: int
    key: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """As JSON, shorter than a pipe."""
        raw = json.dumps(
            {
                "repository": self.repository,
                "namespace": str(self.selection.namespace),
                "snapshot": self.selection.snapshot and str(self.selection.snapshot),
                "archive": self.selection.archive,
                "cache-size": self.cache_size,
                "threads": self.threads,
                "key": self.key and self.key.hex(),
            }
        ).encode()
        assert len(raw) < MAX_PIPE_BYTES, "a path longer than any system's"
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> "Settings":
        """The inverse of `encode`."""
        fields = json.loads(raw)
        snapshot, key = fields["snapshot"], fields["key"]
        return cls(
            repository=fields["repository"],
            selection=Selection(
                Namespace.parse(fields["namespace"]),
                Snapshot.parse(snapshot) if snapshot else None,
                fields["archive"],
            ),
            cache_size=fields["cache-size"],
            threads=fields["threads"],
            key=bytes.fromhex(key) if key else None,
        )

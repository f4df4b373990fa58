"""What the launcher tells the plugin: through a pipe, never on a command line or a disk."""

import json
from dataclasses import dataclass, field

from blockgw.export import Selection
from store.errors import InvalidName
from store.names import Namespace, Snapshot
from store.repositories.settings import RepositorySettings

MAX_PIPE_BYTES = 65536  # what a pipe takes before anybody reads it


@dataclass(frozen=True)
class Settings:
    """`repository` has its secrets with it. `key` is the raw key (32 bytes).

    `threads` is how many requests of one connection are served at once.
    """

    repository: RepositorySettings
    selection: Selection
    threads: int
    key: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """As JSON, shorter than a pipe. Raises InvalidName: it is longer, with all its mirrors."""
        raw = json.dumps(
            {
                "repository": self.repository.encode(),
                "namespace": str(self.selection.namespace),
                "snapshot": self.selection.snapshot and str(self.selection.snapshot),
                "archive": self.selection.archive,
                "threads": self.threads,
                "key": self.key and self.key.hex(),
            }
        ).encode()
        if len(raw) >= MAX_PIPE_BYTES:
            raise InvalidName("the repository's settings are longer than 64 KiB")
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> "Settings":
        """The inverse of `encode`."""
        fields = json.loads(raw)
        snapshot, key = fields["snapshot"], fields["key"]
        return cls(
            repository=RepositorySettings.decode(fields["repository"]),
            selection=Selection(
                Namespace.parse(fields["namespace"]),
                Snapshot.parse(snapshot) if snapshot else None,
                fields["archive"],
            ),
            threads=fields["threads"],
            key=bytes.fromhex(key) if key else None,
        )

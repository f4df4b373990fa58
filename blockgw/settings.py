"""What the launcher tells the plugin: through a pipe, never on a command line or a disk."""

import json
from dataclasses import dataclass, field

from blockgw.export import Selection
from blockgw.writing.selection import HeadSelection
from store.errors import InvalidName
from store.repositories.settings import RepositorySettings

MAX_PIPE_BYTES = 65536  # what a pipe takes before anybody reads it


@dataclass(frozen=True)
class Settings:
    """`repository` has its secrets with it. `key` is the raw key (32 bytes).

    `threads` is how many requests of one connection are served at once.
    """

    repository: RepositorySettings
    selection: Selection | HeadSelection
    threads: int
    key: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """As JSON, shorter than a pipe. Raises InvalidName: it is longer, with all its mirrors."""
        is_head = isinstance(self.selection, HeadSelection)
        raw = json.dumps(
            {
                "repository": self.repository.encode(),
                "head" if is_head else "snapshots": self.selection.encode(),
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
        head, key = fields.get("head"), fields["key"]
        return cls(
            repository=RepositorySettings.decode(fields["repository"]),
            selection=HeadSelection.decode(head) if head else Selection.decode(fields["snapshots"]),
            threads=fields["threads"],
            key=bytes.fromhex(key) if key else None,
        )

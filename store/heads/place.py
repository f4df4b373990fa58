"""Where heads are on the local disk, and what says of each whose it is.

<directory>/<hash of repository, namespace, group>/head.json
                                                   journal.sqlite (-wal, -shm)
                                                   segments/00000001.seg …
<directory>/.vaultway/locks/<the same hash>
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.backends.base import storage_error
from store.datastore.xdg import state_home
from store.errors import FormatError, InvalidName, KeyRequired, StoreError, WrongKey
from store.format.crypt import KEY_SIZE, CryptConfig
from store.heads.control import SOCKET
from store.heads.protection import Protection, unwrap_head_key, wrap_head_key
from store.names import BackupGroup, Namespace

VERSION = 1
HEAD_JSON = "head.json"


def default_directory() -> Path:
    """`~/.local/state/vaultway/heads`."""
    return state_home() / "heads"


def head_name(repository: str, namespace: Namespace, group: BackupGroup, label: str = "") -> str:
    """The directory of a head below that of all."""
    text = "\0".join((repository, str(namespace), str(group), *([label] if label else ())))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Description:
    """What `head.json` says.

    wrapped_key: the head's own, sealed; empty where all is plain.
    label: of a clone; empty for the group's head.
    """

    repository: str
    namespace: Namespace
    group: BackupGroup
    created: float
    fingerprint: str = ""
    wrapped_key: bytes = b""
    label: str = ""

    @classmethod
    def new(
        cls,
        repository: str,
        namespace: Namespace,
        group: BackupGroup,
        key: CryptConfig | None,
        label: str = "",
    ) -> "Description":
        """With a key of its own if there is a key to seal it with."""
        if key is None:
            return cls(repository, namespace, group, time.time(), label=label)
        wrapped = wrap_head_key(key, secrets.token_bytes(KEY_SIZE))
        return cls(repository, namespace, group, time.time(), str(key.fingerprint), wrapped, label)

    def protection(self, key: CryptConfig | None) -> Protection:
        """What opens the journal. Raises KeyRequired, WrongKey."""
        if not self.wrapped_key:
            return Protection(None)
        if key is None:
            raise KeyRequired(
                f"the head of {self.group} is encrypted; it needs the key {self.fingerprint}"
            )
        if str(key.fingerprint) != self.fingerprint:
            raise WrongKey(
                f"the head of {self.group} needs the key {self.fingerprint}, not the given"
                f" {key.fingerprint}"
            )
        return Protection(unwrap_head_key(key, self.wrapped_key))

    def write(self, directory: str) -> None:
        """Put it in place, durably: with it the head is there."""
        text = json.dumps(
            {
                "version": VERSION,
                "repository": self.repository,
                "namespace": str(self.namespace),
                "group": str(self.group),
                "created": self.created,
                "key-fingerprint": self.fingerprint,
                "head-key": self.wrapped_key.hex(),
                "label": self.label,
            }
        )
        path = f"{directory}/{HEAD_JSON}"
        try:
            with open(f"{path}.tmp", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{path}.tmp", path)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, path) from error

    @classmethod
    def read(cls, directory: str) -> "Description | None":
        """None when there is no head. Raises FormatError."""
        path = f"{directory}/{HEAD_JSON}"
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                fields: dict[str, Any] = json.load(file)
            if fields["version"] != VERSION:
                raise FormatError(f"{path}: version {fields['version']}, made by a later vaultway")
            return cls(
                fields["repository"],
                Namespace.parse(fields["namespace"]),
                BackupGroup.parse(fields["group"]),
                fields["created"],
                fields["key-fingerprint"],
                bytes.fromhex(fields["head-key"]),
                fields["label"],
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        except (ValueError, KeyError, TypeError, InvalidName) as error:
            raise FormatError(f"{path}: does not describe a head: {error}") from error


def remove_directory(directory: str) -> None:
    """Remove a head's files; first the one that says it is there."""
    try:
        for name in (HEAD_JSON, f"{HEAD_JSON}.tmp", "journal.sqlite", "journal.sqlite-wal",
                     "journal.sqlite-shm", SOCKET):  # fmt: skip
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")
        segments = f"{directory}/segments"
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(segments):
                os.unlink(entry.path)
            os.rmdir(segments)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)
    except OSError as error:
        raise storage_error(error, directory) from error


__all__ = ["Description", "StoreError", "default_directory", "head_name", "remove_directory"]

"""Names of a datastore's objects and their keys in the bucket (spec maintenance.md 1.2).

.chunks/0123/0123…          <store>/.chunks/0123/0123…
.vaultway/…                 <store>/.vaultway/…          (ours; PBS ignores it)
.in-use                     <store>/.in-use              (to be read, never listed)
anything else               <store>/.cnt/…
the directory ns/a          <store>/.cnt/ns/a/.namespace, an empty object

A key comes from whoever can write to the bucket, and may become a path elsewhere: what breaks the
rules has no name.
"""

import re

from store.errors import InvalidName

CHUNKS = ".chunks"
OURS = ".vaultway"
CONTENTS = ".cnt"
IN_USE = ".in-use"
NAMESPACE_MARKER = ".namespace"
MAX_KEY = 1024
"""Bytes."""

NAMESPACE = re.compile(r"(ns/[^/]+/)*ns/[^/]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
BESIDE_CONTENTS = frozenset((CHUNKS, OURS))
NO_COMPONENT = frozenset(("", ".", ".."))


def check_name(name: str) -> str:
    """Return `name` if it may be an object's: relative, no `..`, no empty component, no controls.

    Raises InvalidName.
    """
    if not _is_name(name):
        raise InvalidName(f"object name {name!r}: not a relative path, or with control characters")
    return name


def _is_name(name: str) -> bool:
    return NO_COMPONENT.isdisjoint(name.split("/")) and not CONTROL.search(name)


def is_namespaces(name: str) -> bool:
    """Whether the directories in this one are namespaces."""
    return NAMESPACE.fullmatch(f"{name}/_") is not None


class Keys:
    """The keys of one datastore."""

    def __init__(self, datastore: str) -> None:
        self.root = f"{datastore}/"
        self._contents = f"{datastore}/{CONTENTS}/"
        self.in_use = f"{datastore}/{IN_USE}"

    def key(self, name: str) -> str:
        """The key of an object. Raises InvalidName."""
        if name == IN_USE:
            return self.in_use
        key = self.place(check_name(name))
        if len(key.encode("utf-8", "surrogateescape")) > MAX_KEY:
            raise InvalidName(f"object name {name!r}: its key has more than {MAX_KEY} bytes")
        return key

    def place(self, name: str) -> str:
        """The same for what need not be a name: where a listing goes on."""
        return (self.root if self._is_beside(name) else self._contents) + name

    @staticmethod
    def _is_beside(name: str) -> bool:
        return name.partition("/")[0] in BESIDE_CONTENTS

    def prefix(self, name: str) -> str:
        """What the keys of all objects below a directory start with; ends in `/`, always.

        Without it `vm/10` would take `vm/100` with it.
        """
        return f"{self.key(name)}/" if name else self.root

    def listings(self, name: str) -> tuple[str, ...]:
        """The prefixes that together hold what is in a directory."""
        return (self.prefix(name),) if name else (self.root, self._contents)

    def marker(self, name: str) -> str | None:
        """The key of the object that makes a namespace's directory; None for other directories."""
        return f"{self.key(name)}/{NAMESPACE_MARKER}" if NAMESPACE.fullmatch(name) else None

    def name(self, key: str) -> str | None:
        """The name of the object with this key; None for a marker or what is not ours to show."""
        if key.startswith(self._contents):
            name = key.removeprefix(self._contents)
            fits = not self._is_beside(name)
        else:
            name = key.removeprefix(self.root)
            fits = key.startswith(self.root) and self._is_beside(name)
        is_ours = fits and _is_name(name) and not name.endswith(f"/{NAMESPACE_MARKER}")
        return name if is_ours and len(key.encode()) <= MAX_KEY else None

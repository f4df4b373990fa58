"""Who owns a backup group (spec 6.2)."""

import re

from store.backends.base import Backend
from store.errors import InvalidName, NotFound, PermissionDenied
from store.names import BackupGroup, Namespace

OWNER = "owner"
DEFAULT_OWNER = "root@pam"
AUTH_ID = re.compile(
    r"[^\s:/\x00-\x1f\x7f]+@[A-Za-z0-9_][A-Za-z0-9._\-]*(![A-Za-z0-9_][A-Za-z0-9._\-]*)?"
)


def check_owner(text: str) -> str:
    """Return `text` if it is `user@realm` or `user@realm!token`. Raises InvalidName."""
    if not AUTH_ID.fullmatch(text):
        raise InvalidName(f"owner {text!r}: write it as user@realm or user@realm!token")
    return text


def read_owner(backend: Backend, namespace: Namespace, group: BackupGroup) -> str:
    """The owner of a group. Raises NotFound when nobody owns it (or there is no such group)."""
    try:
        raw = backend.read(f"{group.path(namespace)}/{OWNER}")
    except NotFound as error:
        raise NotFound(f"backup group {group} has no owner") from error
    owner = raw.decode("utf-8", "replace").partition("\n")[0].strip()
    if not owner:
        raise NotFound(f"backup group {group} has no owner: its file is empty")
    return owner


def write_owner(
    backend: Backend,
    namespace: Namespace,
    group: BackupGroup,
    owner: str,
    *,
    exclusive: bool,
    durable: bool = False,
) -> None:
    """Set the owner of a group; `exclusive` only if it has none.

    Raises InvalidName, AlreadyExists.
    """
    line = f"{check_owner(owner)}\n".encode()
    backend.write(f"{group.path(namespace)}/{OWNER}", (line,), exclusive=exclusive, durable=durable)


def check_may_add(group: BackupGroup, owner: str, who: str) -> None:
    """Raise PermissionDenied unless `who` owns the group, or the owner is a token of that user."""
    if who != owner and not owner.startswith(f"{who}!"):
        raise PermissionDenied(f"backup group {group} belongs to {owner}, not to {who}")

"""The tree of namespaces: one directory `ns/<name>` a level, there when it is there."""

from store.backends.base import Backend
from store.errors import AlreadyExists, InvalidName, Locked, NotFound
from store.names import BACKUP_TYPES, SAFE_ID, Namespace

NS = "ns"


def children(backend: Backend, parent: Namespace) -> list[Namespace]:
    """The namespaces one level below, sorted.

    Foreign names, and what is nested too deep, are left out.
    """
    found = []
    for entry in backend.scan(_join(parent.path, NS)):
        if entry.is_directory and SAFE_ID.fullmatch(entry.name):
            try:
                found.append(parent.child(entry.name))
            except InvalidName:
                continue  # deeper or longer than PBS allows: not ours to show
    return sorted(found)


def list_namespaces(backend: Backend, parent: Namespace, max_depth: int) -> list[Namespace]:
    """`parent` and what is below it, at most `max_depth` levels, sorted. Raises NotFound."""
    check_namespace(backend, parent)
    found = [parent]
    level = [parent]
    for _ in range(max_depth):
        level = [child for namespace in level for child in children(backend, namespace)]
        found += level
    return sorted(found)


def check_namespace(backend: Backend, namespace: Namespace) -> None:
    """Raise NotFound if there is no such namespace."""
    if namespace.components:
        there = backend.stat(namespace.path)
        if there is None or not there.is_directory:
            raise NotFound(f"namespace {namespace} does not exist in {backend.location}")


def create_namespace(backend: Backend, namespace: Namespace) -> None:
    """Make one namespace in an existing one.

    Raises NotFound (no parent), AlreadyExists, InvalidName (the root).
    """
    if not namespace.components:
        raise InvalidName("the root namespace is always there; give a name")
    check_namespace(backend, namespace.parent)
    if not backend.mkdir(namespace.path, durable=True):
        raise AlreadyExists(f"namespace {namespace} exists in {backend.location}")


def remove_empty_namespace(backend: Backend, namespace: Namespace) -> None:
    """Remove a namespace without groups and children.

    Raises Locked when something came into it meanwhile.
    """
    for name in (NS, *BACKUP_TYPES):
        backend.rmdir(f"{namespace.path}/{name}")
    if not backend.rmdir(namespace.path):
        raise Locked(
            f"namespace {namespace} is not empty: {backend.scan(namespace.path)[0].name!r} is in it"
        )


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name

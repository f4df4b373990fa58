"""Export names of a head's images: `[ns/…/]vm/100/current/drive-scsi0.img`."""

from blockgw.export import drive_order
from blockgw.writing.selection import HeadSelection
from store.errors import InvalidName, NotFound
from store.heads.head import IMAGE, OpenHead


class HeadExports:
    """The images of a head, looked up at each call. A name may be the end of a whole one."""

    def __init__(self, selection: HeadSelection, head: OpenHead) -> None:
        self._selection, self._head = selection, head

    def _archives(self) -> list[str]:
        """The served images, first drive first."""
        found = [name for name, kind in self._head.kinds().items() if kind == IMAGE]
        wanted = self._selection.archive
        return sorted((name for name in found if wanted in {None, name}), key=drive_order)

    def _whole(self, archive: str) -> str:
        selected = self._selection
        return f"{selected.group.path(selected.namespace)}/{selected.moment}/{archive}"

    def names(self) -> list[str]:
        """All of them."""
        return [self._whole(archive) for archive in self._archives()]

    def default(self) -> str:
        """The first drive. Raises NotFound."""
        names = self.names()
        if not names:
            archive = self._selection.archive or "disk image"
            raise NotFound(f"no {archive} in {self._selection}: --size makes one")
        return names[0]

    def resolve(self, text: str) -> str:
        """The archive a client means; "" is the default one.

        Raises NotFound, and InvalidName for the end of several names.
        """
        wanted = f"/{text.strip('/') or self.default()}"
        found = [
            archive for archive in self._archives() if f"/{self._whole(archive)}".endswith(wanted)
        ]
        if not found:
            raise NotFound(f"no image {text!r} in {self._selection}")
        if len(found) > 1:
            raise InvalidName(f"export name {text!r} means {found[0]} and {found[1]}")
        return found[0]

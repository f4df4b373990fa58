"""What the launcher does for a writable export, before nbdkit has the head and after.

Here errors have exit codes, and nothing is served yet.
"""

import time
from contextlib import suppress

from blockgw.writing.held_head import heads_of, open_head
from blockgw.writing.names import HeadExports
from blockgw.writing.selection import TEMPORARY, HeadSelection
from store.datastore.archives import ChunkCache
from store.datastore.datastore import Datastore
from store.errors import AlreadyExists, InvalidName, Locked, NotFound, StoreError
from store.format.crypt import CryptConfig
from store.heads.control import ask
from store.heads.head import IMAGE, OpenHead
from store.heads.heads import Heads

ABANDONED_S = 600.0
"""A clone so old that nobody has open was left by an export that was killed."""


class PreparedHead:
    """A head that is there, has the images, and can be opened; until `throw_away`.

    Attributes:
        name: the default export.
    """

    def __init__(
        self, selection: HeadSelection, datastore: Datastore, key: CryptConfig | None
    ) -> None:
        """Open it, make or grow its image, and close it again.

        Raises:
            Locked: another process has it; says which. NotFound: no such group, snapshot, image.
            InvalidName: the image is larger than it shall be. AlreadyExists: the label is taken.
            KeyRequired, WrongKey, FormatError, IntegrityError, BackendError.
        """
        self._selection = selection
        self._heads = heads_of(selection, datastore, key, ChunkCache(0))
        if selection.is_temporary:
            _sweep(self._heads)
        place = selection.namespace, selection.group, selection.label
        is_new = not self._heads.exists(*place)
        if is_new:
            _check_group(selection, datastore)
        try:
            with open_head(selection, self._heads) as head:
                _check_base(selection, head)
                self.name = _provide(selection, head)
        except BaseException:
            if is_new:
                with suppress(StoreError):
                    self._heads.discard(*place)
            raise

    def end(self) -> str | None:
        """Have nbdkit close the head, sealed if the policy says so; waits as long as that takes.

        Returns the snapshot that was made. Raises StoreError when that failed. Then, and when
        nbdkit is dead already, what was flushed is in the head, for the next who opens it.
        """
        selected = self._selection
        path = self._heads.path(selected.namespace, selected.group, selected.label)
        try:
            found: str | None = ask(path, "end")["snapshot"]
        except NotFound:
            return None
        return found

    def throw_away(self) -> None:
        """Remove a clone that nobody wants to keep. nbdkit has ended."""
        selected = self._selection
        if selected.is_temporary:
            with suppress(NotFound):
                self._heads.discard(selected.namespace, selected.group, selected.label)


def _sweep(heads: Heads) -> None:
    """Remove clones that were left by exports that were killed."""
    before = time.time() - ABANDONED_S
    for info in heads.list():
        if info.label.startswith(TEMPORARY) and info.holder is None and info.created < before:
            with suppress(NotFound, Locked):
                heads.discard(info.namespace, info.group, info.label)


def _check_group(selection: HeadSelection, datastore: Datastore) -> None:
    """An export makes a group only where it is told how large its image is. Raises NotFound."""
    namespace, group = selection.namespace, selection.group
    datastore.list_namespaces(namespace, 0)
    if selection.options.size is None and not datastore.list_snapshots(namespace, group):
        raise NotFound(f"{group} has no snapshot; with --size its first image is made")


def _check_base(selection: HeadSelection, head: OpenHead) -> None:
    if selection.clone_of is not None and head.base != selection.clone_of:
        raise AlreadyExists(
            f"the clone {selection.label} stands on {head.base}: export that, discard the clone"
            " (head discard --label), or use another label"
        )


def _provide(selection: HeadSelection, head: OpenHead) -> str:
    """Make or grow the image, open all; the default export's name."""
    archive, size = selection.archive, selection.options.size
    if size is not None:
        assert archive is not None
        _provide_size(head, archive, size)
    for name, kind in head.kinds().items():
        if kind == IMAGE and archive in {None, name}:
            head.image(name)  # here its errors have an exit code
    return HeadExports(selection, head).default()


def _provide_size(head: OpenHead, archive: str, size: int) -> None:
    if archive not in head.archives:
        head.create_image(archive, size)
        return
    image = head.image(archive)
    if size < image.size:
        raise InvalidName(f"{archive} has {image.size} bytes: an image does not shrink to {size}")
    if size > image.size:
        image.grow(size)

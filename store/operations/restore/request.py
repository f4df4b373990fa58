"""How a restore is to be done, and what it did."""

from collections.abc import Callable
from dataclasses import dataclass

from store.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """The same for an archive and for a part of one.

    Attributes:
        overwrite: replace existing files; merge into existing directories.
        ignore_ownership: leave everything to the user who restores.
        skip_zeros: on a block device, do not write zero chunks: it is known to be zero there.
        progress: in bytes of the archive.
        on_warning: gets one line for each thing that could not be kept as it was.
    """

    overwrite: bool = False
    ignore_ownership: bool = False
    skip_zeros: bool = False
    progress: Progress = SILENT
    on_warning: Callable[[str], None] = lambda _text: None


AS_USUAL = RestoreOptions()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did.

    entries: inodes created in a tree, directories included; 1 for an image or blob.
    bytes: of content.
    warnings: how many were passed to `on_warning`.
    """

    archive: str
    target: str
    entries: int
    bytes: int
    warnings: int
